"""Params files that are parsed once per `dvc` command, and not for every stage that reads them.

`make setup` copies this file into .venv, where a .pth file loads it in `dvc` and nowhere else. DVC parses params.yaml
and the profile anew for each stage, a third of a `dvc repro` with nothing to do. Here a text is parsed once: what
comes back depends on the bytes that are in the file now, and on nothing else.
"""

from copy import deepcopy
from functools import cache
from typing import Any

from dvc.utils import serialize
from dvc.utils.serialize._common import _load_data

parse = cache(serialize.parse_yaml)


def load_yaml(path: Any, fs: Any = None, **kwargs: Any) -> Any:
    """What DVC's own `load_yaml` returns; each caller has a copy of its own."""
    return deepcopy(_load_data(path, parser=parse, fs=fs, **kwargs))


serialize.LOADERS[".yaml"] = load_yaml

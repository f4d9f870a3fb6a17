"""DVC's YAML without what it does again: params parsed once per `dvc` command, dvc.lock written stage by stage.

`make setup` copies this file into .venv, where a .pth file loads it in `dvc` and nowhere else. DVC parses params.yaml
and the profile anew for each stage, a third of a `dvc repro` with nothing to do. When a stage is finished it parses
the whole of dvc.lock and writes all of it, in Python: 2 CPU s per stage. Here a text is parsed once, and of dvc.lock
only the lines of stages that have changed are made anew. What comes back depends on the bytes that are in the file
now, and on nothing else; what is written has the bytes that DVC would write.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from dvc.utils import serialize
from dvc.utils.serialize._common import _load_data

SCHEMA, STAGES = "schema: '2.0'\n", "stages:\n"
STAGE = re.compile(r"^(?=  \S)", re.MULTILINE)  # where one begins: its own lines are indented further

parse = cache(serialize.parse_yaml)
modify = serialize.modify_yaml


def load_yaml(path: Any, fs: Any = None, **kwargs: Any) -> Any:
    """What DVC's own `load_yaml` returns; each caller has a copy of its own."""
    return deepcopy(_load_data(path, parser=parse, fs=fs, **kwargs))


@contextmanager
def modify_yaml(path: Any, fs: Any = None) -> Iterator[dict[str, Any]]:
    """DVC's own `modify_yaml`: the content of a file, which is written when the block has ended."""
    lines = lines_of_stages(path, fs)
    if lines is None:
        with modify(path, fs=fs) as data:
            yield data
        return
    before = {name: stage_of(text)[name] for name, text in lines.items()}
    data = {"schema": "2.0", "stages": dict(before)}
    yield data
    if set(data) == {"schema", "stages"} and data["schema"] == "2.0" and data["stages"]:
        stages = data["stages"].items()
        parts = (lines[name] if stage is before.get(name) else lines_of(name, stage) for name, stage in stages)
        text = SCHEMA + STAGES + "".join(parts)
    else:
        text = serialize.dumps_yaml(data)
    with (fs.open if fs else open)(path, "w", encoding="utf-8") as file:
        file.write(text)


def lines_of_stages(path: Any, fs: Any) -> dict[str, str] | None:
    """The lines of each stage of a dvc.lock that are as DVC writes them; None if something else is in the file."""
    if Path(path).name != "dvc.lock" or not (fs.exists(path) if fs else Path(path).exists()):
        return None
    try:
        with (fs.open if fs else open)(path, encoding="utf-8") as file:
            head, *texts = STAGE.split(file.read())
    except UnicodeDecodeError:
        return None
    stages = [stage_of(text) for text in texts]
    lines = {name: text for stage, text in zip(stages, texts, strict=True) for name in stage}
    return lines if head == SCHEMA + STAGES and len(lines) == len(texts) else None


@cache
def stage_of(text: str) -> dict[str, Any]:
    """A stage by its name; empty when a person has written or edited it, for DVC to keep comments and quotes."""
    try:
        stage = serialize.parse_yaml(text, "dvc.lock")
    except serialize.YAMLFileCorruptedError:
        return {}
    return stage if isinstance(stage, dict) and [text] == [lines_of(*item) for item in stage.items()] else {}


def lines_of(name: str, stage: Any) -> str:
    """The lines that DVC writes of a stage."""
    return serialize.dumps_yaml({"stages": {name: stage}}).removeprefix(STAGES)


serialize.LOADERS[".yaml"] = load_yaml
serialize.modify_yaml = modify_yaml  # before dvc.dvcfile takes it from there

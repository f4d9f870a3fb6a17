"""The checkout that a command works on: the root of the one that it was started in."""

import os
from pathlib import Path

from cosmopedia.core.errors import ConfigError

_started = Path.cwd()


def enter() -> None:
    """Go to the checkout's root from any folder in it. `ConfigError` outside one."""
    global _started
    _started = Path.cwd()
    for folder in (_started, *_started.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            os.chdir(folder)
            return
    raise ConfigError(f"{_started} is in no checkout (a folder with dvc.yaml and params.yaml); go to yours first")


def given(path: Path) -> Path:
    """A path of the command line, which is relative to the folder that the person is in."""
    return path if _started == Path.cwd() else _started / path

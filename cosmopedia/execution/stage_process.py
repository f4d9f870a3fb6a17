"""The process of a stage: what is checked before it works, that no second one works at the same time, how it reports.

DVC starts one process per stage. Under DVC the settings of the whole pipeline are checked before the first stage
works, and the process ends when DVC is killed, so that the next `dvc repro` does not meet it. None of this changes
what a stage writes.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmopedia.core.errors import ConfigError, errors_as_sentences
from cosmopedia.core.files import lock
from cosmopedia.execution.environment import recorded
from cosmopedia.execution.settings import check_settings_once


def run_stage(stage: str, main: Callable[[], str]) -> None:
    """Run a stage's `main` and print the line it returns: what the stage made, in a few words ("312 prompts in 21
    cells, 4 duplicates dropped"). Errors are one sentence: see `errors_as_sentences`."""
    with errors_as_sentences(f"{stage}: "):
        check_code()
        if "DVC_STAGE" in os.environ:
            end_with_dvc()
            check_settings_once()
        with alone(stage), recorded(stage):
            print(f"{stage}: {main()}", flush=True)


def check_code() -> None:
    """`ConfigError` when a variable of the environment gives a stage other code than its checkout and its .venv have.

    PYTHONSAFEPATH takes the current folder away, and an experiment's folder would run the main checkout's code;
    PYTHONPATH is searched before .venv (module systems set it).
    """
    own, here = Path(__file__).resolve().parents[2], Path.cwd().resolve()
    if here != own and (here / "cosmopedia/core/errors.py").is_file():
        raise ConfigError(
            f"the code of {own} runs in {here}; unset PYTHONSAFEPATH and PYTHONPATH, or run `make repro`"
        )
    paths = [Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    for path in paths:
        if path in (own, here):
            continue
        for name, module in list(sys.modules.items()):
            if "." not in name and (file := getattr(module, "__file__", None)) and Path(file).is_relative_to(path):
                raise ConfigError(
                    f"{name} comes from {path} and not from .venv, since PYTHONPATH names that folder; unset"
                    " PYTHONPATH, or use `make repro`"
                )


def end_with_dvc() -> None:
    """Get SIGTERM when DVC dies, even by SIGKILL; on Linux.

    The parent may be a shell, which outlives DVC. So the process to watch is the nearest ancestor that is not itself
    part of a stage: the first one that has no DVC_STAGE in its environment.
    """
    if sys.platform != "linux":
        return
    pid = os.getppid()
    while pid > 1 and b"\0DVC_STAGE=" in b"\0" + _of_process(pid, "environ"):
        pid = int(_of_process(pid, "stat").rpartition(b")")[2].split()[1])
    if pid == 1 and b"dvc" not in _of_process(
        pid, "cmdline"
    ):  # of a container it may be DVC; else DVC has died already
        sys.exit(128 + signal.SIGTERM)
    dvc = os.pidfd_open(pid)  # readable once the process has ended

    def watch() -> None:
        select.select([dvc], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-dvc", daemon=True).start()


def _of_process(pid: int, name: str) -> bytes:
    """A file of /proc about a process; empty if that is another user's. This process ends when that one is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except PermissionError:
        return b""
    except (FileNotFoundError, ProcessLookupError):
        sys.exit(128 + signal.SIGTERM)


@contextmanager
def alone(stage: str) -> Iterator[None]:
    """Wait until no other process works on this stage in this checkout, and keep others waiting."""
    folder = Path(".dvc/tmp")
    if not folder.parent.is_dir():
        yield
        return
    folder.mkdir(exist_ok=True)
    with (folder / f"stage-{stage.replace(' ', '-')}.lock").open("a+", encoding="utf-8") as file:
        if not lock(file):
            file.seek(0)
            print(
                f"{stage}: process {file.read().strip() or '?'} of an earlier run still works on this stage; waiting"
                " until it has ended (or end it with kill)",
                file=sys.stderr,
                flush=True,
            )
            lock(file, wait=True)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

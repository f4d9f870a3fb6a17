"""Processes that end with the one that started them, even if it is killed (PR_SET_PDEATHSIG; on Linux)."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

# Runs before the command, in its process: 1 is PR_SET_PDEATHSIG; the parent may have died in the meantime.
_PRELUDE = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
    if os.getppid() != int(sys.argv[2]):
        os._exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""


# Of an environment that is active outside; they would lead a child to other code than ours.
LEADING = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONUSERBASE")
CODE = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """This process's environment for a child that runs the same code as this process."""
    kept = {name: value for name, value in os.environ.items() if name not in LEADING}
    return kept | {"PYTHONPATH": str(CODE)}


def start(command: list[str], log: Path, when_killed: signal.Signals, **options: Any) -> subprocess.Popen:
    """Start a command (its first word a path), in a session of its own so that Ctrl-C reaches only the parent.

    Its output is appended to `log`, and it gets the signal `when_killed` when the parent dies. Its environment is
    `environment()` unless `env` says otherwise.
    """
    options = {"env": environment(), **options}
    prelude = [sys.executable, "-I", "-S", "-c", _PRELUDE, str(int(when_killed)), str(os.getpid())]
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*prelude, *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )

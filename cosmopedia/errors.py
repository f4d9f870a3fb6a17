"""One error class for each kind of blame, and the way a stage reports one.

A message names the file, row or key, what was wanted, what was found, and the next action, in one sentence or two.
`run_stage` prints it without a traceback and ends with the class's exit status; an error that is not ours keeps its
traceback, since it is a defect.
"""

import os
import sys
from collections.abc import Callable


class CosmoError(Exception):
    """A failure that the reader of the message can fix."""

    status = 1


class ConfigError(CosmoError):
    """params.yaml, a profile, a template, a compute file or a command line is wrong."""

    status = 2


class DataError(CosmoError):
    """An input file or a row of it breaks its contract."""

    status = 3


class ClusterError(CosmoError):
    """A server, a job, a disk or a network failed."""

    status = 4


class InternalError(CosmoError):
    """A promise that this repository makes to itself was broken: please report it."""

    status = 5


def run_stage(stage: str, main: Callable[[], str]) -> None:
    """Run a stage's `main`, print the line it returns, and turn a `CosmoError` into one clear sentence.

    `main` returns what the stage made, in a few words ("312 prompts in 21 cells, 4 duplicates dropped").
    Exit statuses: 0 done, 2 configuration, 3 data, 4 cluster, 5 internal, 130 interrupted.
    """
    try:
        print(f"{stage}: {main()}", flush=True)
    except CosmoError as error:
        print(f"{stage}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status)
    except OSError as error:
        if error.errno is None or (error.filename is None and not str(error)):
            raise
        named = f" ({error.filename})" if error.filename else ""
        print(f"{stage}: error: {error.strerror or error}{named}", file=sys.stderr, flush=True)
        sys.exit(ClusterError.status)
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; run it again to go on", file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(130)

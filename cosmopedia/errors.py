"""One error class for each kind of blame, and the way a stage reports one.

A message names the file, row or key, what was wanted, what was found, and the next action, in one sentence or two.
`run_stage` and `cosmo` print it without a traceback and end with the class's exit status; an error that is not ours
keeps its traceback, since it is a defect. Neither shows a secret (cosmopedia/redaction.py).
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cosmopedia.redaction import guard_output, say


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


@contextmanager
def errors_as_sentences(prefix: str = "") -> Iterator[None]:
    """Turn a `CosmoError`, an error of the operating system and an interrupt into one sentence and an exit status.

    Exit statuses: 0 done, 2 configuration, 3 data, 4 cluster, 5 internal, 130 interrupted.
    """
    guard_output()
    try:
        yield
    except CosmoError as error:
        say(f"{prefix}error: {error}")
        sys.exit(error.status)
    except OSError as error:
        if error.errno is None or (error.filename is None and not str(error)):
            raise
        named = f" ({error.filename})" if error.filename else ""
        say(f"{prefix}error: {error.strerror or error}{named}")
        sys.exit(ClusterError.status)
    except KeyboardInterrupt:
        print(f"{prefix}interrupted; run it again to go on", file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(130)


def run_stage(stage: str, main: Callable[[], str]) -> None:
    """Run a stage's `main` and print the line it returns: what the stage made, in a few words ("312 prompts in 21
    cells, 4 duplicates dropped"). Errors are one sentence: see `errors_as_sentences`."""
    with errors_as_sentences(f"{stage}: "):
        print(f"{stage}: {main()}", flush=True)

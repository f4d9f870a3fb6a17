"""One error class for each kind of blame, and the way a stage reports one.

A message names the file, row or key, what was wanted, what was found, and the next action, in one sentence or two.
A stage and `cosmo` print it without a traceback and end with the class's exit status; an error that is not ours
keeps its traceback, since it is a defect. Neither shows a secret (cosmopedia/execution/redaction.py).
"""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmopedia.execution.redaction import guard_output, say

FREE_SPACE, MAKE_WRITABLE = "; free some space there and run it again", "; make it writable for you and run it again"
ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FREE_SPACE)
ADVICE |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), MAKE_WRITABLE)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LITTLE_SPACE = 4 << 20  # bytes
# What torch and numpy say when a disk is full, without its name.
WRITE_FAILED = re.compile(r"inline_container|failed writing file|iostream error|requested and \d+ written")


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
    except Exception as error:
        sentence = _of_the_system(error)
        if sentence is None:
            raise
        say(f"{prefix}error: {sentence}")
        sys.exit(ClusterError.status)
    except KeyboardInterrupt:
        print(f"{prefix}interrupted; run it again to go on", file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(130)


def _of_the_system(error: Exception) -> str | None:
    """An error of the operating system, also where a library passes a full disk on as its own, as a sentence."""
    text, path = " ".join(str(error).split()), None
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        _, path, text = error.args[0][0]  # the first file that could not be copied
        number = next((one for one in ADVICE if os.strerror(one) in str(text)), errno.EIO)
    elif isinstance(error, OSError):
        path = error.filename2 or error.filename
    if number is None:
        number = next((one for one in DISK if os.strerror(one) in str(text)), None)
    if number is None and WRITE_FAILED.search(str(text)) and _tightest()[0] < LITTLE_SPACE:
        number = errno.ENOSPC
    if number is None:
        return None
    if path is None and number in (errno.ENOSPC, errno.EDQUOT):
        free, place = _tightest()
        path = f"{place} has the least space, {free / 1e6:,.0f} MB"
    what = os.strerror(number) if number in ADVICE else getattr(error, "strerror", None) or text
    return f"{what} ({path}){ADVICE.get(number, '')}" if path else str(what)


def _tightest() -> tuple[int, str]:
    """(free bytes, path) of that place of all where stages write which has the least space."""
    store, temporary = Path(os.environ.get("COSMO_STORE") or ".store"), Path(tempfile.gettempdir())
    places = (Path(), store, temporary, *Path("data").glob("*"), *Path("models").glob("*"))
    return min((shutil.disk_usage(place).free, str(place.resolve())) for place in places if place.is_dir())

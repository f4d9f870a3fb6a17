"""Records of a dataset, from the hub at a pinned revision or from local files of the same schema.

Local: a file or a folder; dataset_folders.py says which files are read, record_formats.py how. Everything else is a
hub dataset id, read through `datasets` in streaming mode. No dataset is loaded into memory.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.lineage import content_revision
from cosmopedia.records.dataset_folders import dataset_files
from cosmopedia.records.formats import Record, file_records, without_nan
from cosmopedia.records.pins import check_pin, is_local

MAX_RECORD_MB = 64  # of a record, where a stage has no param for it
WAITS_S = (1.0, 5.0, 25.0)  # before a hub stream that broke off is opened again
COMMIT = re.compile(r"[0-9a-f]{40}")


def read_records(
    dataset: str, subset: str | None, split: str | None, revision: str | None, max_record_mb: float = MAX_RECORD_MB
) -> tuple[Iterator[Record], str]:
    """(records in the dataset's order, resolved revision).

    The revision is "sha256:<16 digits>" of local content, or the commit that a hub revision stands for.
    `ConfigError` when the dataset is neither a file nor a hub id that answers, or when a local one is not what
    `revision` pins; `DataError` for an empty file. A local record above `max_record_mb` is one with a problem, or a
    `DataError` where the next one cannot be found.
    """
    if is_local(dataset):
        files = dataset_files(dataset, subset, split).files
        content = content_revision(files)
        check_pin(dataset, revision, content)
        limit = int(max_record_mb * (1 << 20))
        return chain.from_iterable(file_records(file, limit) for file in files), content
    resolved = resolve_revision("dataset", dataset, revision)
    return _hub_records(dataset, subset, split, resolved), resolved


def resolve_revision(kind: str, hub_id: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub dataset or model stands for; a commit is returned as it is.

    Warns on stderr when the profile does not pin one. `ConfigError` when the hub does not answer or does not know it.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name = revision or "main"
    print(f"warning: {hub_id} is not pinned (revision: {name}); `cosmo pin` pins it", file=sys.stderr)
    try:
        api = HfApi()
        info = api.dataset_info(hub_id, revision=name) if kind == "dataset" else api.model_info(hub_id, revision=name)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"{kind} {hub_id} at revision {name} is not available from the hub ({type(error).__name__});"
            " check the id and the network, or give a local file or folder instead"
        ) from None
    if info.sha is None:
        raise ConfigError(f"{kind} {hub_id} at revision {name}: the hub names no commit; pin one in the profile")
    return info.sha


def _hub_records(dataset: str, subset: str | None, split: str | None, revision: str) -> Iterator[Record]:
    """A hub dataset's rows. When the stream breaks off it is opened again at the row where it was.

    `ConfigError` when it cannot be opened at all, `ClusterError` when it breaks off at one row again and again.
    """
    from aiohttp import ClientError
    from datasets import load_dataset

    def opened(skipped: int) -> Iterable[dict[str, Any]]:
        stream = load_dataset(dataset, name=subset, split=split, revision=revision, streaming=True)
        return stream.skip(skipped) if skipped else stream  # type: ignore[union-attr]

    try:
        stream = opened(0)
    except (OSError, ValueError, RuntimeError) as error:
        reason = _reason(error)
        raise ConfigError(f"hub dataset {dataset} (subset {subset}, split {split}) at {revision}: {reason}") from None
    row, waits = 0, iter(WAITS_S)
    while True:
        try:
            for values in opened(row) if stream is None else stream:
                yield Record(f"{dataset}:{row}", without_nan(values))
                row, waits = row + 1, iter(WAITS_S)
            return
        except (OSError, EOFError, ValueError, RuntimeError, ClientError) as error:  # what network and decoders raise
            wait, stream = next(waits, None), None
            problem = f"the stream of {dataset} at {revision} broke off at row {row}: {_reason(error)}"
            if wait is None:
                raise ClusterError(
                    f"{problem}; tried {len(WAITS_S) + 1} times. Check the network and run the stage again, or give"
                    " sources a local copy of the dataset"
                ) from None
            print(f"warning: {problem}; opened again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]

"""What `cosmo store` does with the completion store, as data; cosmopedia/cli/store.py prints it."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cosmopedia.cli.stages import stage_modules
from cosmopedia.core.errors import ConfigError
from cosmopedia.execution.budget import Forecast
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.earlier import completions_here, earlier_completions
from cosmopedia.execution.sending import forecast_of
from cosmopedia.generation.complete import LookUp, StageRequests
from cosmopedia.generation.requests import completion_key
from cosmopedia.store import maintenance
from cosmopedia.store.bucket import Bucket, BucketFiles
from cosmopedia.store.copies import Copied, copy_from_bucket, copy_to_bucket
from cosmopedia.store.documents import keys_of_table
from cosmopedia.store.folder import files_in, keys_in, split_keys
from cosmopedia.store.maintenance import Compaction
from cosmopedia.store.store import CompletionStore, default_bucket, default_folder


def open_folder() -> tuple[Path, Bucket | None]:
    """The store's folder, brought up to date when it mirrors a bucket."""
    bucket = default_bucket()
    if bucket is None:
        return default_folder(), None
    bucket.push()
    bucket.pull()
    return bucket.folder, bucket


def contents() -> dict[str, Any]:
    """Counts, size and address of the store."""
    folder, bucket = open_folder()
    return {**asdict(CompletionStore(folder, bucket).contents()), "address": bucket.address if bucket else str(folder)}


def forecast() -> Forecast:
    """What `generate` would reuse and send now, and the bill."""
    of_generate = next(requests for requests in all_requests() if requests.stage == "generate")
    with CompletionStore() as store:
        lookup = LookUp(of_generate.requests, of_generate.model, of_generate.sampling, store)
        lookup.reuse(earlier_completions)
        return forecast_of(lookup, load_compute())


def verify() -> dict[str, Any]:
    """Read every byte of every file; `problems` has a sentence for each damaged one, `torn` the bytes of writes that
    never ended, by file."""
    folder, _ = open_folder()
    problems = maintenance.verify(folder)
    torn = {str(path): size for path, size in maintenance.torn_tails(folder).items()}
    return {"address": str(folder), "files": len(files_in(folder)), "problems": problems, "torn": torn}


def compact(wanted: Callable[[bytes], bool] | None = None) -> Compaction:
    """Put segments into parquet files, each completion once; without those that are not wanted."""
    folder, bucket = open_folder()
    done = maintenance.compact(folder, wanted)
    if bucket:
        bucket.replace(done.new, done.old)
    for path in done.old:  # in a bucket, once the new files are there
        path.unlink(missing_ok=True)
    return done


def repair() -> tuple[int, int]:
    """Set damaged files aside and keep what is whole in them: (files, completions kept)."""
    folder, bucket = open_folder()
    new, damaged, rows = maintenance.repair(folder)
    if bucket:
        bucket.replace(new, damaged)
    return len(damaged), rows


def import_documents(files: Iterable[Path]) -> int:
    """Take completions over from documents (data/generate/*.parquet of another checkout)."""
    with CompletionStore() as store:
        return store.import_documents([str(file) for file in files])


def push(address: str | None = None) -> tuple[Copied, str]:
    """Upload what a killed process left in the spool; or with an address compact the store and copy it there."""
    if address is not None:
        compact()
        return copy_to_bucket(open_folder()[0], BucketFiles(_address(address))), address
    bucket = _own_bucket("push")
    return Copied(bucket.push()), bucket.address


def pull(address: str | None = None) -> tuple[Copied, str]:
    """Bring the local copy of a store in a bucket up to date; or with an address copy from there what is missing."""
    if address is None:
        bucket = _own_bucket("pull")
        return Copied(bucket.pull()), bucket.address
    if default_bucket() is not None:
        raise ConfigError(
            "the store is in a bucket itself; set COSMO_STORE to a folder to copy into, or push from there"
        )
    return copy_from_bucket(BucketFiles(_address(address)), default_folder()), address


def _own_bucket(command: str) -> Bucket:
    bucket = default_bucket()
    if bucket is None:
        raise ConfigError(
            f"the store is the folder {default_folder()}; name a bucket: cosmo store {command} s3://bucket/prefix"
        )
    return bucket


def _address(address: str) -> str:
    if "://" not in address:
        raise ConfigError(f"{address}: expected the address of a bucket, such as s3://bucket/prefix")
    return address


def unused(files: Iterable[Path]) -> tuple[int, int]:
    """(completions that nothing refers to, all completions); see `wanted_by`."""
    folder, _ = open_folder()
    wanted = wanted_by(files)
    with CompletionStore(folder) as store:
        total = store.contents().completions
    keys = (key for path in files_in(folder) for part in keys_in(path) for key in split_keys(part))
    return sum(not wanted(key) for key in keys), total


def all_requests() -> Iterator[StageRequests]:
    """What this checkout's stages ask a model now."""
    for module in stage_modules("requests"):
        yield module.stage_requests()


def wanted_by(files: Iterable[Path]) -> Callable[[bytes], bool]:
    """Whether anything refers to a key: the prompts as they are, this checkout's documents, or those named. It may
    err on the side of keeping: 64 bits of a key are looked at."""
    numbers = array("Q")
    for of_stage in all_requests():
        keys = (completion_key(request, of_stage.model.identity, of_stage.sampling) for request in of_stage.requests)
        numbers.extend(int(key[:16], 16) for key in keys)
    for path in (*(table.path for table in completions_here()), *files):
        numbers.extend(int(key[:16], 16) for key in keys_of_table(path))
    kept = np.unique(np.frombuffer(numbers, np.uint64))

    def wanted(key: bytes) -> bool:
        number = np.uint64(int.from_bytes(key[:8], "big"))
        at = int(np.searchsorted(kept, number))
        return at < len(kept) and kept[at] == number

    return wanted

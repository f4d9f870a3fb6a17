"""completions: what the completion store holds, what a run would reuse, and its upkeep.

python -m cosmopedia.cli.store            its contents and size
python -m cosmopedia.cli.store forecast   what `generate` would reuse and send now, and the bill
python -m cosmopedia.cli.store verify     read every byte of every segment and pack
python -m cosmopedia.cli.store compact    pack segments into parquet, each completion once
python -m cosmopedia.cli.store salvage    set damaged files aside and keep what is whole in them
python -m cosmopedia.cli.store import F…  take completions over from data/generate/*.parquet of another checkout
python -m cosmopedia.cli.store push       upload what a killed process left in the spool of an s3:// store
python -m cosmopedia.cli.store unused F…  what nothing refers to: not the prompts of this checkout as they are now, not
                                        data/generate here, not the documents named
python -m cosmopedia.cli.store remove-unused F…  and remove it
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from cosmopedia.cli.stages import stage_modules
from cosmopedia.errors import ConfigError, DataError, run_stage
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.sending import forecast_of
from cosmopedia.generation.complete import LookUp, StageRequests
from cosmopedia.generation.requests import completion_key
from cosmopedia.store.bucket import Bucket
from cosmopedia.store.folder import files_in, keys_in, split_keys
from cosmopedia.store.maintenance import Compaction, compact, repair, verify
from cosmopedia.store.store import CompletionStore, default_bucket, default_folder
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import read_batches

DOCUMENTS = Path("data/generate")


def _place() -> tuple[Path, Bucket | None]:
    """The store's folder, brought up to date when it mirrors a bucket."""
    mirror = default_bucket()
    if mirror is None:
        return default_folder(), None
    mirror.push()
    mirror.pull()
    return mirror.folder, mirror


def contents(_: list[str]) -> str:
    folder, mirror = _place()
    found = CompletionStore(folder, mirror).contents()
    return (
        f"{found.completions:,} completions, {found.tokens:,} tokens, {found.segments} segments and"
        f" {found.parquet_files} packs, {found.bytes:,} bytes in {mirror.address if mirror else folder}"
    )


def forecast(_: list[str]) -> str:
    asked = next(found for found in all_requests() if found.stage == "generate")
    with CompletionStore() as store:
        lookup = LookUp(asked.requests, asked.model, asked.sampling, store)
        return forecast_of(lookup, load_compute().serving).sentence()


def check(_: list[str]) -> str:
    folder, _mirror = _place()
    if problems := verify(folder):
        raise DataError("; ".join(problems))
    found = CompletionStore(folder).contents()
    return f"{found.segments} segments and {found.parquet_files} packs in {folder}, every checksum right"


def pack(_: list[str]) -> str:
    folder, mirror = _place()
    done = compact(folder)
    _settle(done, mirror)
    busy = f"; {done.in_use} left alone, since a run still writes to them" if done.in_use else ""
    packed = f"{done.kept:,} completions in {len(done.new)} packs, {done.left_out} repeats"
    return f"{len(done.old)} segments packed: {packed}{busy}"


def mend(_: list[str]) -> str:
    folder, mirror = _place()
    new, damaged, rows = repair(folder)
    if mirror:
        mirror.replace(new, damaged)
    return f"{len(damaged)} damaged files set aside, {rows} completions kept from them"


def take_over(files: list[str]) -> str:
    if not files:
        raise ConfigError("import wants documents: ... import <other checkout>/data/generate/*.parquet")
    with CompletionStore() as store:
        return f"{store.import_documents(files)} completions imported"


def push(_: list[str]) -> str:
    mirror = default_bucket()
    if mirror is None:
        raise ConfigError("push is for a store in a bucket; set COSMO_STORE=s3://bucket/prefix")
    return f"{mirror.push()} segments uploaded to {mirror.address}"


def unused(files: list[str]) -> str:
    folder, _mirror = _place()
    wanted = _wanted(files)
    with CompletionStore(folder) as store:
        total = store.contents().completions
    idle = sum(not wanted(key) for path in files_in(folder) for keys in keys_in(path) for key in split_keys(keys))
    return f"{idle:,} of {total:,} completions are referred to by nothing; `remove-unused` removes them"


def remove_unused(files: list[str]) -> str:
    folder, mirror = _place()
    done = compact(folder, _wanted(files))
    _settle(done, mirror)
    busy = f"; {done.in_use} segments left alone, since a run still writes to them" if done.in_use else ""
    return f"{done.left_out:,} completions removed, {done.kept:,} kept{busy}"


def _settle(done: Compaction, mirror: Bucket | None) -> None:
    """Remove what was replaced; in a bucket, once the new packs are there."""
    if mirror:
        mirror.replace(done.new, done.old)
    for path in done.old:
        path.unlink(missing_ok=True)


def all_requests() -> Iterator[StageRequests]:
    """What this checkout's stages ask a model now."""
    for module in stage_modules("requests"):
        yield module.stage_requests()


def _wanted(files: Iterable[str]) -> Callable[[bytes], bool]:
    """Whether anything refers to a key: the prompts as they are, this checkout's documents, or those named. It may
    err on the side of keeping: 64 bits of a key are looked at."""
    found = array("Q")
    for asked in all_requests():
        keys = (completion_key(request, asked.model.identity, asked.sampling) for request in asked.requests)
        found.extend(int(key[:16], 16) for key in keys)
    for path in (*sorted(DOCUMENTS.glob("*.parquet")), *files):
        for table in read_batches([path], DOCUMENT, ["key"]):
            found.extend(int(key[:16], 16) for key in table["key"].to_pylist())
    kept = np.unique(np.frombuffer(found, np.uint64))

    def wanted(key: bytes) -> bool:
        number = np.uint64(int.from_bytes(key[:8], "big"))
        at = int(np.searchsorted(kept, number))
        return at < len(kept) and kept[at] == number

    return wanted


COMMANDS: dict[str, Callable[[list[str]], str]] = {
    "contents": contents,
    "forecast": forecast,
    "verify": check,
    "compact": pack,
    "salvage": mend,
    "import": take_over,
    "push": push,
    "unused": unused,
    "remove-unused": remove_unused,
}


def main() -> str:
    command, *files = sys.argv[1:] or ["contents"]
    if command not in COMMANDS or (files and command not in ("import", "unused", "remove-unused")):
        raise ConfigError(f"unknown command {' '.join(sys.argv[1:])!r}; use {', '.join(COMMANDS)}")
    return COMMANDS[command](files)


if __name__ == "__main__":
    run_stage("completions", main)

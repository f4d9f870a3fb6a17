"""Completions that earlier runs paid for and DVC still has, for a completion store that lacks them.

DVC empties a stage's outs before it runs the stage, and a pulled clone has no store. What was in them is still in
DVC's cache: as dvc.lock's version, and as the version of every other run, which the run cache lists. A git worktree
finds what is in the cache of its main checkout as well.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cosmopedia.core.lineage import main_checkout
from cosmopedia.core.params import SafeLoader
from cosmopedia.store.documents import Table, has_completions, table_at

PAID = (
    "data/generate",
    "data/label",
    "data/paraphrases",
    "data/pilot/completions.parquet",
    "data/selfcheck",
)  # outs with completions in them
LOCK = "dvc.lock"


def earlier_completions() -> Iterator[Table]:
    """Tables with completions: those in this checkout, then those in DVC's cache, dvc.lock's version first.

    Warns when dvc.lock names some that are neither here nor in the cache and a remote may have them.
    """
    yield from completions_here()
    caches, absent, seen = cache_folders(), set[str](), set[str]()
    for out, digest in (*_locked_outs(), *_outs_of_runs(caches)):
        if digest in seen:
            continue
        seen.add(digest)
        tables = _cached_tables(caches, digest)
        if tables is None:
            absent.add(out)
        else:
            yield from (table for table in tables if has_completions(table.path))
    if absent and _dvc_config(Path.cwd())[1].get("remote"):
        print(
            f"warning: {', '.join(sorted(absent))} of an earlier run is not in DVC's cache; if a remote has it,"
            f" stop here and run `dvc fetch {' '.join(sorted(absent))}`, so that nothing is generated again",
            file=sys.stderr,
            flush=True,
        )


def completions_here() -> Iterator[Table]:
    """Tables with completions in this checkout."""
    for out in map(Path, PAID):
        tables = sorted(out.glob("*.parquet")) if out.is_dir() else [out]
        yield from map(table_at, filter(has_completions, tables))


def cache_folders() -> list[Path]:
    """DVC's cache of this checkout and, in a git worktree, that of the main checkout."""
    folders = []
    for checkout in dict.fromkeys((Path.cwd().resolve(), main_checkout())):
        folder, config = _dvc_config(checkout)
        if folder:
            folders.append(Path(config["cache"].get("dir") or folder / "cache"))
    return list(dict.fromkeys(folders))


def _dvc_config(checkout: Path) -> tuple[Path | None, dict[str, Any]]:
    """DVC's folder of a checkout, and its settings of all levels; (None, {}) outside a DVC repository.

    Read here, since a `dvc` command takes a second, and a stage that asks its model again looks again.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        folder = Repo.find_dvc_dir(str(checkout))
        return Path(folder), Config(folder, validate=False)
    except DvcException:
        return None, {}


def _locked_outs() -> Iterator[tuple[str, str]]:
    """(out, hash) in dvc.lock and in the committed one, which is whole when a kill has cut the other short."""
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True, text=True, check=False).stdout
    here = Path(LOCK).read_text(encoding="utf-8") if Path(LOCK).is_file() else ""
    for text in dict.fromkeys((here, committed)):
        content = lock_content(text)
        for stage in (content.get("stages") or {}).values():
            yield from _paid_outs(stage)


def _outs_of_runs(caches: list[Path]) -> Iterator[tuple[str, str]]:
    """(out, hash) in the run caches, the newest run first."""
    records = [path for cache in caches for path in cache.glob("runs/*/*/*")]
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        text = path.read_text(encoding="utf-8", errors="replace")
        if any(out in text for out in PAID):
            yield from _paid_outs(lock_content(text))


def lock_content(text: str) -> dict[str, Any]:
    """The text of a dvc.lock, or of a run cache's record; {} for a broken one."""
    try:
        content = yaml.load(text, SafeLoader)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _paid_outs(stage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for out in stage.get("outs") or ():
        if out.get("path") in PAID and out.get("md5"):
            yield out["path"], out["md5"]


def _cached_tables(caches: list[Path], digest: str) -> list[Table] | None:
    """The files of an out in the cache; None when they are not all there."""
    whole = cached_file(caches, digest)
    if whole is None:
        return None
    if not digest.endswith(".dir"):
        return [Table(whole)]
    entries = {entry["relpath"]: entry["md5"] for entry in json.loads(whole.read_text(encoding="utf-8"))}
    tables = []
    for name in sorted(name for name in entries if name.endswith(".parquet") and "/" not in name):
        path = cached_file(caches, entries[name])
        if path is None:
            return None
        thoughts = entries.get(f"thoughts/{name}")
        tables.append(Table(path, cached_file(caches, thoughts) if thoughts else None))
    return tables


def cached_file(caches: list[Path], digest: str) -> Path | None:
    """A hash's file in the first cache that has it."""
    paths = (cache / "files/md5" / digest[:2] / digest[2:] for cache in caches)
    return next((path for path in paths if path.is_file()), None)

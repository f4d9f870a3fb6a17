"""The outs of another time or place: a folder, a git revision, or an experiment of DVC.

Of a revision nothing is checked out: its dvc.lock names the outs by hash, and DVC's cache has their files.
"""

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.execution.earlier import LOCK, cache_folders, cached_file, lock_content


@dataclass(frozen=True)
class Version:
    """Where the outs of a folder, a revision or an experiment are.

    `commit` is "" for a folder. `direct`: outs of a folder that are not where the pipeline writes them, because the
    folder is that out itself.
    """

    name: str
    kind: str  # folder | revision | experiment
    folder: Path = Path()
    commit: str = ""
    direct: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def lock(self) -> dict[str, Any]:
        """Its dvc.lock by stage; {} when there is none."""
        if self.commit:
            text = git("show", f"{self.commit}:./{LOCK}")
        else:
            path = self.folder / LOCK
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return lock_content(text).get("stages") or {}

    @cached_property
    def outs(self) -> dict[str, str]:
        """The outs that its dvc.lock names, and their hashes."""
        return {out["path"]: out.get("md5", "") for stage in self.lock.values() for out in stage.get("outs") or ()}

    @property
    def _caches(self) -> list[Path]:
        return _caches_of(Path.cwd())

    def has(self, out: str) -> bool:
        """Whether it has an out at all; of a revision, whether its dvc.lock names it."""
        return out in self.outs if self.commit else bool(self.direct.get(out)) or (self.folder / out).exists()

    def files(self, out: str) -> dict[str, Path]:
        """The files of an out that is a folder, by their names in it; {} without such an out.

        `DataError` when DVC's cache lacks one of a revision's.
        """
        if not self.commit:
            place = self.direct.get(out) or self.folder / out
            return {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
        if not self.outs.get(out):
            return {}
        listing = cached_file(self._caches, self.outs[out])
        entries = json.loads(listing.read_text(encoding="utf-8")) if listing else []
        files = {entry["relpath"]: cached_file(self._caches, entry["md5"]) for entry in entries}
        absent = [file for file, path in files.items() if path is None]
        if listing is None or absent:
            what = f"{out}/{absent[0]}" if absent else out
            raise DataError(
                f"{self.name}: {what} is not in DVC's cache; `git checkout {self.commit[:10]} -- {LOCK} && dvc fetch"
                f" {out}` brings it from the remote"
            )
        return {file: path for file, path in sorted(files.items()) if path}

    def path(self, out: str) -> Path | None:
        """An out that is a file; None when it is not here."""
        if self.commit:
            digest = self.outs.get(out)
            return cached_file(self._caches, digest) if digest else None
        path = self.folder / out
        return path if path.is_file() else None

    def json(self, out: str) -> dict[str, Any] | None:
        """An out that is a JSON file, such as a stage's metrics; None when it is not here."""
        path = self.path(out)
        return read_json(path) if path else None


def find(name: str, folder: Path, outs: Iterable[str], fits: Callable[[str], bool], wanted: str) -> Version:
    """A version by what a person typed; `folder` is that as a path.

    A folder with a parquet file whose name `fits` in one of `outs`, or itself, wins over a branch of the same name.
    `ConfigError` for a name that is nothing of this; `DataError` for a folder without such a file (`wanted`: what to
    do), or a revision without any of `outs`.
    """
    outs = list(outs)
    for out in outs:
        if any(fits(path.name) for path in (folder / out).glob("*.parquet")):
            return Version(name, "folder", folder)
    if folder.is_dir() and any(fits(path.name) for path in folder.glob("*.parquet")):
        return Version(name, "folder", folder, direct=dict.fromkeys(outs, folder))
    experiment = _experiments().get(name)
    commit = experiment or git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    if not commit and folder.is_dir():
        raise DataError(f"{folder} {wanted}")
    if not commit:
        raise ConfigError(
            f"{name!r} is no folder, git revision or DVC experiment; `git branch -a` and `dvc exp list` have the names"
        )
    version = Version(name, "experiment" if experiment else "revision", commit=commit)
    if not any(map(version.has, outs)):
        raise DataError(f"{name}: its {LOCK} has no {outs[0]}; run the pipeline there and commit {LOCK}")
    return version


@cache
def _caches_of(checkout: Path) -> list[Path]:
    """DVC's caches, looked for once per checkout."""
    return cache_folders()


def _experiments() -> dict[str, str]:
    """Commits of DVC's experiments by name; of two with one name the younger."""
    lines = git("for-each-ref", "--sort=committerdate", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    pairs = (line.split(" ") for line in lines)
    return {ref.rpartition("/")[2]: commit for ref, commit in pairs if ref.count("/") == 4}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file. `DataError` when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}; run the stage that writes it again") from None


def git(*arguments: str) -> str:
    """What a git command prints; "" when it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout

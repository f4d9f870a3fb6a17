"""One release: which repository on the hub, from which revision, and the folder with the files that go up."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cosmopedia.core.lineage import hash_file


@dataclass(frozen=True)
class File:
    """A file that goes up."""

    path: str  # in the repository
    size: int  # bytes
    sha256: str
    blob: str  # git's id of it: sha1, for files that the hub does not keep as large ones


@dataclass(frozen=True)
class Release:
    """What is published, where, and from where."""

    kind: str  # "dataset" | "model"
    repo: str  # owner/name
    revision: str  # of git
    date: str  # of that revision, YYYY-MM-DD
    folder: Path

    def files(self) -> list[File]:
        """What goes up, by name."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [
            File(path.relative_to(self.folder).as_posix(), path.stat().st_size, hash_file(path), blob_id(path))
            for path in paths
        ]


def blob_id(path: Path) -> str:
    """Git's id of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

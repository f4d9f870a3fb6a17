"""The tables of one version of the corpus, scanned by columns; what is not here is noted, with what brings it.

All document tables are sorted by completion id, so a look-up by id reads the row groups whose statistics let it in.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from cosmopedia.core.errors import DataError
from cosmopedia.execution.versions import Version
from cosmopedia.tables.cell_files import cell_of

DOCUMENTS = ("generate", "natural", "clean", "dedup", "decontaminate")  # stages with document tables, in their order
REMOVING = ("clean", "dedup", "decontaminate")  # those with a table of removed documents
PATH = "file of the row"


class Corpus:
    """Lazy frames of a version's outs."""

    def __init__(self, version: Version):
        self.version = version
        self.missing: dict[str, str] = {}  # what is not here -> the command that brings it
        self._files: dict[str, dict[str, Path]] = {}

    def files(self, out: str) -> dict[str, Path]:
        """The files of a folder by their names in it; an absent one is noted."""
        files = self.present(out)
        if not files:
            self._note(out)
        return files

    def present(self, out: str) -> dict[str, Path]:
        """The files of a folder by their names in it; {} for one that need not be here."""
        if out not in self._files:
            try:
                self._files[out] = self.version.files(out)
            except DataError:
                self._files[out] = {}
        return self._files[out]

    def file(self, out: str) -> Path | None:
        """A file that is an out by itself; an absent one is noted."""
        path = self.version.path(out)
        if path is None:
            self._note(out)
        return path

    def _note(self, out: str) -> None:
        """A stage that this version does not have is nothing that is missing."""
        if out in self.version.outs or (not self.version.outs and out != "data/mix"):
            commit = self.version.commit[:10]
            self.missing[out] = (
                f"git checkout {commit} -- dvc.lock && dvc fetch {out}" if commit else f"dvc pull {out}"
            )

    def cells(self, out: str, cell: str | None = None, source: str | None = None) -> dict[str, Path]:
        """The document or prompt tables of a folder by name; those of one cell, or of one source."""
        names = {name: path for name, path in self.files(out).items() if "/" not in name and name.endswith(".parquet")}
        if cell is not None:
            return {name: path for name, path in names.items() if cell_of(name) == cell}
        if source is not None:
            return {name: path for name, path in names.items() if cell_of(name).partition("-")[0] == source}
        return names

    def final(self) -> str | None:
        """The last stage whose documents are here; decontaminate's are those that the mix takes from."""
        return next((stage for stage in reversed(DOCUMENTS) if self.cells(f"data/{stage}")), None)

    def absent_after(self, stage: str) -> list[str]:
        """The later stages whose documents are not here, though this version has them."""
        later = DOCUMENTS[DOCUMENTS.index(stage) + 1 :]
        return [one for one in later if one in REMOVING and f"data/{one}" in self.missing]


def scan(paths: Iterable[Path]) -> pl.LazyFrame:
    """A frame over files, with the file that a row is from in PATH."""
    return pl.scan_parquet(list(paths), include_file_paths=PATH, glob=False)


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """The frame's rows. `DataError` for a damaged file, or one that is no such table."""
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"a table cannot be read: {first}; run the stage that writes it again, or dvc pull") from None


def with_id(column: str, what: str) -> pl.Expr:
    """Rows whose id is `what`, or `what` and a sample's number behind a dash."""
    key = pl.col(column)
    return (key >= what) & (key < f"{what}.") & ((key == what) | key.str.starts_with(f"{what}-"))


def rows_with(paths: Mapping[str, Path], condition: pl.Expr, limit: int = 100) -> list[dict]:
    """Whole rows, with the name of their file (of `paths`) in PATH; [] without files."""
    if not paths:
        return []
    names = {str(path): name for name, path in paths.items()}
    rows = collect(scan(paths.values()).filter(condition).head(limit)).to_dicts()
    return [{**row, PATH: names[row[PATH]]} for row in rows]

"""Any table of any stage, for people: which ones there are, what columns they have, and rows that meet conditions."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.errors import ConfigError, DataError

DATA = Path("data")
CONDITION = re.compile(r"(\w+)\s*(!=|>=|<=|=|>|<|~)\s*(.*)", re.DOTALL)
COMPARISONS = {"=": "eq", "!=": "ne", ">": "gt", ">=": "ge", "<": "lt", "<=": "le"}
SET_ASIDE = ("removed", "rejected", "failed")  # tables that a stage has next to its own
BATCH = 500  # rows that are read at a time


@dataclass(frozen=True)
class Table:
    """Files next to each other that have the same columns."""

    name: str  # below data/: generate, dedup/removed, topics/web
    files: list[Path]
    schema: pa.Schema
    rows: int
    bytes: int

    @property
    def text_columns(self) -> list[str]:
        return [field.name for field in self.schema if pa.types.is_string(field.type)]

    @property
    def id_columns(self) -> list[str]:
        return [name for name in self.text_columns if name in ("id", "key") or name.endswith("_id")]

    def no_column(self, name: str) -> str:
        return f"{self.name} has no column {name}; its columns: {', '.join(self.schema.names)}"


def tables_at(name: str, folder: Path) -> list[Table]:
    """The tables of a stage ("generate"), of a folder or a file of it ("dedup/removed", "topics/web"), or of any path.

    `folder` is `name` as a path, for what is not below data/. `ConfigError` when there is no table.
    """
    places = (DATA / name, DATA / f"{name}.parquet", folder)
    place = next((one for one in places if one.exists()), places[0])
    if place.is_file():
        return [_table(place.with_suffix(""), [place])]
    files = sorted(place.rglob("*.parquet"), key=lambda path: (path.parent, path.name))
    if not files:
        stages = sorted({path.relative_to(DATA).parts[0] for path in DATA.glob("*/**/*.parquet")})
        raise ConfigError(
            f"{name}: {place} has no parquet file; run the stage, or dvc pull; there are tables of"
            f" {', '.join(stages) or 'no stage'}"
        )
    found = [one for parent, several in groupby(files, lambda path: path.parent) for one in _split(parent, several)]
    return sorted(found, key=lambda table: table.name.rpartition("/")[2] in SET_ASIDE)


def _split(parent: Path, files: Iterator[Path]) -> list[Table]:
    """The tables of a folder: it has one, or several with other columns each."""
    by_columns: dict[tuple[str, ...], list[Path]] = {}
    for path in files:
        by_columns.setdefault(tuple(_metadata(path).schema.to_arrow_schema().names), []).append(path)
    several = len(by_columns) > 1
    return [_table(paths[0].with_suffix("") if several else parent, paths) for paths in by_columns.values()]


def _table(place: Path, files: list[Path]) -> Table:
    found = [_metadata(path) for path in files]
    name = place.relative_to(DATA) if place.is_relative_to(DATA) else place
    rows, size = sum(one.num_rows for one in found), sum(path.stat().st_size for path in files)
    return Table(name.as_posix(), files, found[0].schema.to_arrow_schema(), rows, size)


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged parquet file: {error}; run the stage that writes it again, or dvc pull")


def condition(text: str, table: Table) -> pl.Expr:
    """ "tokens>=100", "topic=Tides", "text~tide" (in it, in any case) as an expression; nothing behind =: no value.

    `ConfigError` for anything else, or a column that the table does not have.
    """
    match = CONDITION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--where {text!r} is no condition; write column=value, !=, >, >=, <, <= or column~part")
    name, sign, value = match.groups()
    if name not in table.schema.names:
        raise ConfigError(f"--where {text!r}: {table.no_column(name)}")
    kind, column = table.schema.field(name).type, pl.col(name)
    if pa.types.is_nested(kind):
        raise ConfigError(f"--where {text!r}: {name} is a {kind}, which has no order; choose another column")
    if sign == "~":
        return contains(column, value)
    if not value and sign in ("=", "!="):
        empty = column.is_null() | (column.cast(pl.String) == "")
        return empty if sign == "=" else ~empty
    try:
        wanted = float(value) if pa.types.is_integer(kind) or pa.types.is_floating(kind) else value
    except ValueError:
        raise ConfigError(f"--where {text!r}: {name} is a number ({kind}), {value!r} is none") from None
    return getattr(column if isinstance(wanted, float) else column.cast(pl.String), COMPARISONS[sign])(wanted)


def contains(column: pl.Expr, part: str) -> pl.Expr:
    """Whether a value has a part, in any case."""
    return column.cast(pl.String).str.to_lowercase().str.contains(part.lower(), literal=True)


def any_of(conditions: Iterable[pl.Expr]) -> pl.Expr:
    """Whether one of them holds; without any, none does."""
    return pl.any_horizontal(pl.lit(False), *conditions)


def rows_of(
    table: Table, conditions: list[pl.Expr], columns: list[str], skip: int, limit: int
) -> list[dict[str, Any]]:
    """The first `limit` rows that meet all conditions, after `skip` of them. Memory does not grow with the table."""
    return list(islice(_rows(table, conditions, columns), skip, skip + limit))


def _rows(table: Table, conditions: list[pl.Expr], columns: list[str]) -> Iterator[dict[str, Any]]:
    needed = {name for one in conditions for name in one.meta.root_names()}
    for path in table.files:
        try:
            file = pq.ParquetFile(path, pre_buffer=False)
            wanted = [name for name in file.schema_arrow.names if name in needed or name in columns]
            for batch in file.iter_batches(batch_size=BATCH, columns=wanted):
                yield from pl.DataFrame(batch).filter(*conditions).select(columns).iter_rows(named=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise _damaged(path, error) from None

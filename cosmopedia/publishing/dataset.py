"""The corpus as it is published: Cosmopedia's six columns, a configuration per source, card and Croissant."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.cards import published
from cosmopedia.core.errors import DataError
from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.corpus.references import ATTRIBUTIONS, licences_of
from cosmopedia.licences import Terms, terms
from cosmopedia.publishing.checks import check_decontamination, check_findings, check_licences
from cosmopedia.publishing.croissant import croissant
from cosmopedia.publishing.release import Release
from cosmopedia.publishing.scan import TEXTS, Finding, cleared, findings
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import ROW_GROUP, count_rows, read_batches, tables_in

CORPUS = Path("data/corpus")
# Of HuggingFaceTB/cosmopedia, with its types.
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("text_token_length", pa.int64()),
        ("text", pa.string()),
        ("seed_data", pa.string()),
        ("format", pa.string()),
        ("audience", pa.string()),
    ]
)


def build(release: Release, allowed: list[str], mask: bool) -> Terms:
    """Make the folder of a release anew, checked: nothing is in it that must not leave. Returns its terms."""
    tables = tables_in(CORPUS)
    check_decontamination(sum(map(count_rows, tables)))
    whole = corpus_terms(tables)
    check_licences(whole, allowed)
    if not mask:
        check_findings(list(_findings(tables)), release.folder.with_name("findings.csv"))
    clear_folder(release.folder)
    for table in tables:
        _write(table, release.folder / table.name, mask)
    if (CORPUS / ATTRIBUTIONS).is_file():
        shutil.copyfile(CORPUS / ATTRIBUTIONS, release.folder / ATTRIBUTIONS)
    write_text(release.folder / "README.md", _card(release))
    write_text(release.folder / "croissant.json", croissant(release, whole, tables))
    return whole


def corpus_terms(tables: list[Path]) -> Terms:
    """What the rows of the corpus come under."""
    licences, models = set(), set()
    for table in read_batches(tables, DOCUMENT, ["seed_licence", "model"], batch_rows=ROW_GROUP):
        licences |= set(table["seed_licence"].unique().to_pylist())
        models |= set(table["model"].unique().to_pylist())
    return terms(licences | licences_of(CORPUS), models)


def _findings(tables: list[Path]) -> Iterator[Finding]:
    for table in read_batches(tables, DOCUMENT, ["completion_id", *TEXTS]):
        yield from findings(table.to_pylist())


def _write(table: Path, out: Path, mask: bool) -> None:
    with pq.ParquetWriter(out, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for batch in read_batches([table], DOCUMENT, SCHEMA.names, batch_rows=ROW_GROUP):
            if mask:
                for column in TEXTS:
                    texts = pa.array([cleared(text) for text in batch[column].to_pylist()], pa.string())
                    batch = batch.set_column(batch.schema.get_field_index(column), column, texts)
            writer.write_table(batch.select(SCHEMA.names).cast(SCHEMA), row_group_size=ROW_GROUP)


def _card(release: Release) -> str:
    path = CORPUS / "README.md"
    try:
        card = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage report (dvc repro report), or dvc pull") from None
    return published(card, release.revision).replace(f'load_dataset("{CORPUS}"', f'load_dataset("{release.repo}"')

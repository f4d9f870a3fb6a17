"""data/corpus/: what leaves the repository, the finished documents and the card by which `load_dataset` reads them."""

import shutil

from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.corpus.references import ATTRIBUTIONS
from cosmopedia.tables.parquet import count_rows
from stages.report.card import dataset_card
from stages.report.facts import DATA, Facts, published_tables

OUT = DATA / "corpus"


def publish(facts: Facts, profile: str) -> str:
    """Write data/corpus/ anew; returns what it is, in a few words.

    Copies, since DVC's cache has equal files once. Without natural text, which others wrote; without removed/, whose
    table has other columns, and without empty tables, which `load_dataset` refuses.
    """
    clear_folder(OUT)
    tables = [table for table in published_tables() if count_rows(table)]
    for table in tables:
        shutil.copyfile(table, OUT / table.name)
    write_text(OUT / "README.md", dataset_card(facts, profile))
    if facts.quoted.height:
        facts.quoted.write_csv(OUT / ATTRIBUTIONS)
    return f"{OUT} ({facts.documents:,} documents in {len(tables)} files)"

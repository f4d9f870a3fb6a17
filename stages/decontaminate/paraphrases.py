"""Documents in which the stage paraphrases has found one, apart from what the detectors find."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from cosmopedia.tables.contracts import PARAPHRASE
from cosmopedia.tables.parquet import read_rows

JUDGED = Path("data/paraphrases/pairs.parquet")
EVIDENCE = ("task", "item_id", "cosine", "passage")  # of a removal

Paraphrases = dict[str, list[dict[str, Any]]]  # the pairs that were judged yes, by completion id


def read_paraphrases(path: Path = JUDGED) -> Paraphrases:
    """The pairs that the model judged to be paraphrases."""
    found: Paraphrases = defaultdict(list)
    for row in read_rows([path], PARAPHRASE):
        if row["verdict"] == "yes":
            found[row["completion_id"]].append(row)
    return dict(found)


def paraphrase_metrics(found: Paraphrases, by_detectors: set[str]) -> dict[str, Any]:
    """Documents and items with a paraphrase, and how many of the documents (`by_detectors`) a detector finds too."""
    return {
        "documents": len(found),
        "items": len({row["item_id"] for rows in found.values() for row in rows}),
        "documents_of_detectors_too": len(found.keys() & by_detectors),
    }

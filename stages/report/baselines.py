"""Other people's models next to ours, on the items and documents that both have answered."""

from pathlib import Path
from typing import Any

from cosmopedia.evaluation.scores import Scores, heldout, over_seeds, panel, summary
from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import read_table

BASELINES, EVALUATE = Path("data/baselines"), Path("data/evaluate")


def next_to_ours(baselines: dict[str, Any], tasks: list[str]) -> dict[str, Scores]:
    """The panel of `tasks` and the held-out score of each baseline by name, and of `ours`; {} without baselines.

    Ours is the mean over all our models' tables, on what the first baseline has answered: a stage that scores other
    people's large models may take fewer items.
    """
    if not baselines.get("models"):
        return {}
    scores = {name: _scores(BASELINES, name, tasks) for name in baselines["models"]}
    first = next(iter(scores))
    items = set(read_table(BASELINES / f"{first}.parquet", DETAIL, ["item_id"])["item_id"].to_pylist())
    documents = _ids(BASELINES / f"heldout-{first}.parquet")
    tables = sorted(path.stem for path in EVALUATE.glob("seed-*.parquet"))
    ours = over_seeds({name: _scores(EVALUATE, name, tasks, items, documents) for name in tables})
    return scores | {"ours": ours}


def _ids(path: Path) -> set[str]:
    return set(read_table(path, HELDOUT, ["document_id"])["document_id"].to_pylist())


def _scores(
    folder: Path, name: str, tasks: list[str], items: set[str] | None = None, documents: set[str] | None = None
) -> Scores:
    """A table's scores, of these items and documents only; None: of all."""
    rows = read_table(folder / f"{name}.parquet", DETAIL).to_pylist()
    rows = [row for row in rows if items is None or row["item_id"] in items]
    texts = read_table(folder / f"heldout-{name}.parquet", HELDOUT).to_pylist()
    texts = [row for row in texts if documents is None or row["document_id"] in documents]
    means = panel(summary([row for row in rows if row["task"] == task]) for task in tasks)
    return {"panel": means, "heldout": heldout(texts)["together"]}

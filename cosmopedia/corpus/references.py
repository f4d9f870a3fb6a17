"""Which articles of the reference corpus the prompts of some documents quote: what must be named with them."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cosmopedia.core.errors import DataError

REFERENCES, PASSAGES = Path("data/prompts/references"), Path("data/knowledge/passages.parquet")
ATTRIBUTIONS = "attributions.csv"  # next to a corpus: one line per article
ARTICLE = ("licence", "revision", "article", "title")


def quoted_articles(documents: Sequence[Path]) -> pl.DataFrame:
    """The articles that the prompts of DOCUMENT tables quote, with in how many of the documents; most documents first.

    No rows where no prompt quotes a passage. `DataError` for a passage that is not among those of data/knowledge.
    """
    tables = sorted(REFERENCES.glob("*.parquet"))
    if not tables or not documents:
        return pl.DataFrame(schema=dict.fromkeys(ARTICLE, pl.String) | {"documents": pl.UInt32})
    written = pl.scan_parquet(list(documents)).select("completion_id", "prompt_id")
    quoted = pl.scan_parquet(tables).join(written, on="prompt_id").explode("passages")
    passages = pl.scan_parquet(PASSAGES).select("passage_id", *ARTICLE)
    rows = quoted.join(passages, left_on="passages", right_on="passage_id", how="left")
    counted = rows.group_by(ARTICLE).agg(documents=pl.col("completion_id").n_unique())
    order = {"documents": True, **dict.fromkeys(ARTICLE, False)}
    found = counted.sort([*order], descending=[*order.values()]).collect(engine="streaming")
    if found["article"].null_count():
        raise DataError(f"{REFERENCES} names passages that {PASSAGES} does not have; run `dvc repro prompts`")
    return found


def licences_of(folder: Path) -> set[str]:
    """The licences of the articles that a corpus quotes, as its folder says."""
    path = folder / ATTRIBUTIONS
    if not path.is_file():
        return set()
    return set(pl.read_csv(path, infer_schema=False)["licence"].fill_null(""))

"""knowledge: passages of a reference corpus, from which prompts of the preset `grounded` take their facts.

In: a dataset of articles (profile: knowledge), local or from the hub at a pinned revision.
Out: data/knowledge/passages.parquet (PASSAGE), data/knowledge/rejected/rejected.parquet (REJECTED: articles left out,
with the reason), metrics/knowledge.json. With `dataset: null` both tables are empty.
Contract: an article is cut at the ends of its paragraphs, so that a passage is whole sentences. Articles are streamed;
memory grows by 8 bytes per article. Their order makes no difference.
Run: python -m stages.knowledge
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load
from cosmopedia.core.row_counts import RowCounts, write_metrics
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.records.pins import WATCHED
from cosmopedia.records.reading import Record, read_records
from cosmopedia.tables.contracts import PASSAGE, REJECTED
from cosmopedia.tables.external_sort import SortingWriter
from cosmopedia.tables.parquet import TableWriter
from stages.knowledge.articles import Columns, passages_of_articles

OUT, METRICS = Path("data/knowledge"), Path("metrics/knowledge.json")
SAMPLES = "data/samples/knowledge"  # the one folder of samples that DVC watches for this stage


class KnowledgeParams(Params):
    """Which articles, and how they are cut."""

    dataset: str | None  # hub id, file or folder; None: no passages
    subset: str | None
    split: str | None
    revision: str | None  # commit of a hub dataset, pin of a local file
    title: str | None  # the column with an article's title; None: there is none
    text: str  # the column with its text
    limit: int | None = Field(ge=1)  # articles read at most
    licence: str
    words: int = Field(ge=20)  # of a passage, about
    min_words: int = Field(ge=1)  # of an article's last passage; a shorter one joins the one before


def settings() -> KnowledgeParams:
    """The stage's params. `ConfigError` for a dataset that DVC does not watch here, or `min_words` above `words`."""
    params = load("knowledge", KnowledgeParams)
    dataset = (params.dataset or "").rstrip("/")
    if dataset.startswith(WATCHED) and dataset != SAMPLES and not dataset.startswith(f"{SAMPLES}/"):
        raise ConfigError(
            f"knowledge.dataset: DVC does not watch {params.dataset} for this stage; copy it to a folder outside"
            f" {WATCHED}, where `cosmo pin` writes its hash into the profile, or take {SAMPLES}"
        )
    if params.min_words > params.words:
        raise ConfigError(f"knowledge.min_words is {params.min_words}, above knowledge.words ({params.words})")
    return params


def main() -> str:
    """Cut all articles; returns the summary line."""
    params = settings()
    clear_folder(OUT)
    counts, about, words = RowCounts("knowledge"), {}, 0
    with (
        SortingWriter(OUT / "passages.parquet", PASSAGE) as writer,
        TableWriter(OUT / "rejected/rejected.parquet", REJECTED) as rejected,
    ):
        articles, about = articles_of(params)
        columns = Columns(params.title, params.text, about["revision"] or "", params.licence)
        for passage in passages_of_articles(articles, columns, params.words, params.min_words, rejected, counts):
            writer.write(passage)
            words += len(passage["text"].split())
        if params.dataset is not None and not writer.rows:
            raise DataError(
                f"{params.dataset}: no passage in {counts.rows_in} articles ({dict(counts.removed) or 'it is empty'});"
                " correct knowledge.text, knowledge.title or the dataset"
            )
    metrics = {**counts.metrics(), "passages": writer.rows, "words": words, **about}
    write_metrics(METRICS, metrics)
    if params.dataset is None:
        return "off (knowledge.dataset): no passages"
    return f"{writer.rows} passages of {counts.kept} of {counts.rows_in} articles from {params.dataset}"


def articles_of(params: KnowledgeParams) -> tuple[Iterator[Record], dict[str, Any]]:
    """The articles, and where they are from, for the metrics."""
    records, revision = iter(()), None
    if params.dataset is not None:
        records, revision = read_records(params.dataset, params.subset, params.split, params.revision)
    about = {"dataset": params.dataset, "subset": params.subset, "split": params.split}
    return islice(records, params.limit), {**about, "revision": revision, "licence": params.licence}


if __name__ == "__main__":
    run_stage("knowledge", main)

"""report: headline numbers, figures, an HTML report with a viewer and a map, and the corpus with its dataset card.

In: metrics/*.json, metrics/sources/*.json, metrics/plots/{prompts,contamination,train_loss}.csv,
metrics/plots/topics.png, data/decontaminate/*.parquet (DOCUMENT),
data/{generate,clean}/*.parquet (DOCUMENT), data/{clean,dedup,decontaminate}/removed/removed.parquet (REMOVED),
data/cluster/assignments.parquet (ASSIGNMENT), data/topics/{topics,web}.parquet (TOPIC, TOPIC_OF_ROW),
data/sources/web.parquet (SOURCE),
data/{evaluate,baselines}/*.parquet (DETAIL, HELDOUT), data/prompts/references/*.parquet (REFERENCES) and
data/knowledge/passages.parquet (PASSAGE) where prompts quote passages.
Out: metrics/report.json (the numbers that `dvc metrics diff` and `dvc exp show` compare),
metrics/plots/{removed,tokens}.csv, data/report/{index,viewer,map}.html (each one file that needs no network),
data/report/figures/*.svg, data/corpus/ (the synthetic documents of data/decontaminate and the dataset card: what
leaves the repository; with attributions.csv where prompts quote passages), and data/report/run.html (where, when and
at what cost), which DVC ignores.
Contract: the same inputs give the same bytes, except in run.html. Text from models and the web is escaped.
Run: python -m stages.report
"""

from pathlib import Path

from pydantic import Field

from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.core.params import Params, load, profile_path
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.execution.stage_process import run_stage
from stages.report.corpus import publish
from stages.report.facts import collect
from stages.report.figures import draw_all
from stages.report.headline import headline, removed_table, tokens_table
from stages.report.map import render_map, sample
from stages.report.page import render
from stages.report.run_record import render_run
from stages.report.viewer import drawn, render_viewer

OUT, METRICS, PLOTS = Path("data/report"), Path("metrics/report.json"), Path("metrics/plots")


class ReportParams(Params):
    """How much of the data is shown."""

    seed: int  # which documents are shown
    examples: int = Field(ge=1)  # documents of each format, and of each reason for removal
    excerpt: int = Field(ge=80)  # characters of each
    viewer_rows: int | None = Field(ge=1)  # documents in the viewer, drawn by id; None: all


def settings() -> ReportParams:
    """The stage's params."""
    return load("report", ReportParams)


def main() -> str:
    params, profile = settings(), profile_path().stem
    facts = collect(params.seed, params.examples)
    clear_folder(OUT)
    figures = draw_all(facts, OUT / "figures")
    page = render(facts, profile, figures, params.excerpt)
    write_text(OUT / "index.html", page)
    write_text(OUT / "viewer.html", render_viewer(drawn(params.seed, params.viewer_rows), profile))
    points = sample()
    if points is not None:
        write_text(OUT / "map.html", render_map(points, profile))
    write_text(OUT / "run.html", render_run(profile))
    write_text(PLOTS / "removed.csv", removed_table(facts))
    write_text(PLOTS / "tokens.csv", tokens_table(facts))
    write_metrics(METRICS, headline(facts))
    corpus = publish(facts, profile)
    return f"{OUT}/index.html ({len(page.encode()) / 1e6:.1f} MB), {len(figures)} figures, {corpus}"


if __name__ == "__main__":
    run_stage("report", main)

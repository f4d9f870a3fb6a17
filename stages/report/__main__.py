"""report: figures, an HTML report and the dataset card, from what the other stages measured.

In: metrics/*.json, metrics/sources/*.json, metrics/plots/{prompts,contamination,train_loss}.csv,
metrics/plots/clusters.png, data/decontaminate/*.parquet (DOCUMENT),
data/{clean,dedup,decontaminate}/removed/removed.parquet (REMOVED).
Out: metrics/plots/report_*.svg, data/report/index.html (one file that needs no network), data/report/README.md (the
dataset card).
Contract: the same inputs give the same bytes. Text from models and the web is escaped.
Run: python -m stages.report
"""

from pathlib import Path

from pydantic import Field

from cosmopedia.execution.stage_process import run_stage
from cosmopedia.files import clear_folder
from cosmopedia.params import Params, load, profile_path
from stages.report.card import dataset_card
from stages.report.facts import collect
from stages.report.figures import draw_all
from stages.report.page import render

OUT, PLOTS = Path("data/report"), Path("metrics/plots")


class ReportParams(Params):
    """How much of the data is shown."""

    seed: int  # which documents are shown
    examples: int = Field(ge=1)  # documents of each format, and of each reason for removal
    excerpt: int = Field(ge=80)  # characters of each


def settings() -> ReportParams:
    """The stage's params."""
    return load("report", ReportParams)


def main() -> str:
    params, profile = settings(), profile_path().stem
    facts = collect(params.seed, params.examples)
    figures = draw_all(facts, PLOTS)
    page = render(facts, profile, figures, params.excerpt)
    clear_folder(OUT)
    (OUT / "index.html").write_text(page, encoding="utf-8")
    (OUT / "README.md").write_text(dataset_card(facts, profile), encoding="utf-8")
    return f"{OUT}/index.html ({len(page.encode()) / 1e6:.1f} MB), {OUT}/README.md, {len(figures)} figures"


if __name__ == "__main__":
    run_stage("report", main)

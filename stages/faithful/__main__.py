"""faithful: what completions say beyond the text that their prompts quote, judged without a model.

In: data/generate/<source>-<style>.parquet (DOCUMENT), prompts/ (what of a prompt is the template's).
Out: data/faithful/<source>-<style>.parquet (FAITHFUL: numbers, units, dates and names of a completion, those that its
source lacks with their places, and the share of its words and n-grams that the source has), metrics/faithful.json (per
cell and topic, with intervals). Cells that `cells` does not name, and prompts that quote no text, have no rows. With
`enabled: false` the folder is empty.
Contract: a verdict depends on a document and its prompt alone. What counts as supported: cosmopedia/faithfulness/.
pilot and clean judge by the same `limits`, and do nothing about it unless their params say so.
Run: python -m stages.faithful
"""

import shutil
from pathlib import Path

from cosmopedia.core.files import clear_folder, replacing
from cosmopedia.core.params import load
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.pipeline import CorpusRun
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.faithfulness.settings import FaithfulParams
from cosmopedia.tables.cell_files import cell_of
from stages.faithful.verdicts import JudgeCells, count

OUT, METRICS = Path("data/faithful"), Path("metrics/faithful.json")
MB_PER_SECOND = 0.5  # of one worker, measured


def settings() -> FaithfulParams:
    """The stage's params."""
    return load("faithful", FaithfulParams)


def main() -> str:
    """Judge every cell; returns the summary line."""
    params = settings()
    if not params.enabled:
        clear_folder(OUT)
        write_metrics(METRICS, {"enabled": False})
        return "off (faithful.enabled): nothing is judged"

    with CorpusRun("faithful", "data/generate", OUT, load_compute().data, MB_PER_SECOND) as run:
        files = [path for path in run.cells if params.judges(cell_of(path))]
        verdicts = run.scratch / "verdicts"
        step = JudgeCells(files, params, verdicts, run.arrays.notes("judge"))
        run.run("judge", [step], max(1, min(run.tasks, len(files))), total=run.rows)
        run.arrays.check()
        for path in files:
            with replacing(OUT / path.name) as draft:
                shutil.move(verdicts / path.name, draft)
    metrics = count([OUT / path.name for path in files], files)
    write_metrics(METRICS, {"enabled": True, **metrics})
    share = metrics["unsupported_share"]["value"]
    return (
        f"{metrics['documents']} documents judged in {len(metrics['cells'])} cells:"
        f" {sum(metrics['unsupported'].values())} of {sum(metrics['claims'].values())} numbers, dates and names"
        f" ({share or 0:.0%}) are in no source; {metrics['unfaithful']} documents beyond the limits"
    )


if __name__ == "__main__":
    run_stage("faithful", main)

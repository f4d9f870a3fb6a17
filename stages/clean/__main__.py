"""clean: strip boilerplate openings and closings, and remove completions that are not documents.

In: data/generate/<source>-<style>.parquet (DOCUMENT), data/natural/<component>-natural.parquet (DOCUMENT),
models/generator/tokenizer.json (to count texts that were cut, and natural text), curation/chat.yaml; unless
`unfaithful` is keep, data/faithful/<source>-<style>.parquet (FAITHFUL).
Out: data/clean/<source>-<style>.parquet (DOCUMENT), data/clean/removed/removed.parquet (REMOVED: empty, invalid,
refusal, truncated, short, language, repetition, unfaithful, personal_data), metrics/clean.json.
Contract: per pattern of chat the metrics have the share of documents that it touched and what it matched in three;
`text_token_length` stays the server's count unless the text was changed; then it counts the text alone. Natural text
has the rules of `clean.natural` and no chat; its rows are in `cells`, and in no total.
Run: python -m stages.clean
"""

from pathlib import Path
from typing import Any

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import check, section
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.corpus.chat import ChatPatterns
from cosmopedia.corpus.pipeline import CorpusRun, ReadCells, WriteCells, natural_rows, removed_writer, statistic
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.stage_process import run_stage
from stages.clean.rules import CleanFilter, CleanParams, personal_data, read_examples

FAITHFUL = Path("data/faithful")
TOKENIZER = Path("models/generator/tokenizer.json")
MB_PER_SECOND = 0.7  # of one worker: a thousand documents of 4 kB in 7 seconds


def settings() -> CleanParams:
    """The stage's params, with the patterns of chat."""
    return check(section("clean") | {"patterns": ChatPatterns.read()}, CleanParams, "clean")


def main() -> str:
    """Clean every cell; returns the summary line."""
    params = settings()
    if not TOKENIZER.is_file():
        raise DataError(f"{TOKENIZER} is missing; run the generator stage, or dvc pull")
    data = load_compute().data
    with CorpusRun("clean", "data/generate", "data/clean", data, MB_PER_SECOND, natural="data/natural") as run:
        parts, examples = run.scratch / "removed", run.scratch / "examples"
        steps = [
            ReadCells(run.cells),
            CleanFilter(params, str(TOKENIZER), removed_writer(parts), examples, FAITHFUL),
            WriteCells(run.cells, run.out),
        ]
        stats = run.run("clean", steps, total=run.rows)
        metrics, _ = run.settle([parts])
        matched = read_examples(examples)
    changed = statistic(stats, "changed.")
    counted = {name: changed.get(name, 0) for name in [*params.patterns.openings, *params.patterns.closings, "cut"]}
    patterns = {
        name: {"share_of_documents": changed[name] / metrics["rows_in"], "examples": some}
        for name, some in matched.items()
    }
    controls = statistic(stats, "control_characters").get("", 0)  # documents, whether removed or kept
    own: dict[str, Any] = {"changed": counted, "control_characters": controls, "patterns": patterns}
    own["personal_data"] = personal_data(params.personal_data, statistic(stats, "personal."))
    own["language"] = params.language.expected if params.language else None  # what every document that stays is in
    if params.unfaithful != "keep":
        own["unfaithful"] = {"action": params.unfaithful, "documents": statistic(stats, "unfaithful.")}
    write_metrics("metrics/clean.json", {**metrics, **own})
    reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["removed"].items()) or "none"
    return f"{metrics['rows_kept']} of {metrics['rows_in']} documents kept; removed: {reasons}{natural_rows(metrics)}"


if __name__ == "__main__":
    run_stage("clean", main)

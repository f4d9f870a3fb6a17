"""What scoring benchmark items costs, and whether other harnesses compute the same log-probabilities.

In: the repository's evaluation sets, a model (by default the rehearsal's shape with random weights).
Out: CPU seconds of each side in a process of its own, with its imports, medians of interleaved runs; the greatest
difference from our log-probabilities; one line with the key figures. The goal is at most lm-eval's CPU seconds.
lm-eval is left out where it is missing: pip install --target FOLDER lm-eval, then --lm-eval FOLDER.
Run: python -m perf.evaluation (about three minutes on 2 cores)
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "data/samples"
EVALUATE = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["evaluate"]
TASKS = list(dict.fromkeys(task for tasks in EVALUATE["panels"].values() for task in tasks))
SIDES = ("ours", "lighteval", "lm-eval")
BATCH_TOKENS, LOGITS_MB = 8192, 256  # the rehearsal's


def sample_items() -> dict[str, list[dict[str, Any]]]:
    """BENCHMARK rows, as far as they are scored, by task."""
    from cosmopedia.records.reading import read_records
    from stages.benchmarks.cloze import FORMS, Fields

    items: dict[str, list[dict[str, Any]]] = {}
    for task in TASKS:
        records, _ = read_records(str(SAMPLES / f"benchmarks/{task}.jsonl"), None, None, None)
        forms = [FORMS[task](Fields(record.values, record.place)) for record in records]
        items[task] = [
            {"item_id": f"{task}/{n:06d}", "query": form.query, "choices": form.choices, "gold": form.gold}
            for n, form in enumerate(forms)
        ]
    return items


def new_model(folder: Path) -> None:
    """The rehearsal's shape with random weights and the samples' tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SAMPLES / "tokenizer")
    torch.manual_seed(1)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 3}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def score(side: str, model: Path, scratch: Path) -> dict[str, list[float]]:
    """The log-probabilities of each item's choices."""
    items = sample_items()
    rows = [row for several in items.values() for row in several]
    if side == "lighteval":
        from cosmopedia.evaluation.lighteval_run import run_lighteval

        return run_lighteval(model, items, "float32")[1]
    if side == "lm-eval":
        return by_lm_eval(model, rows)
    from cosmopedia.evaluation.items import encode_items, regroup
    from cosmopedia.evaluation.scorer import Scorer
    from cosmopedia.evaluation.scoring import encoder_of

    encoded = encode_items(encoder_of(model), rows)
    scorer = Scorer(model, "float32", BATCH_TOKENS, LOGITS_MB)
    values = scorer.logprobs([one for item in encoded for one in item.sequences], "choices")
    return {item.item_id: several for item, several in zip(encoded, regroup(encoded, values), strict=True)}


def by_lm_eval(model: Path, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """lm-eval's log-probabilities of the choices, by item id."""
    from lm_eval.api.instance import Instance  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    harness = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=64)
    pairs = [(row, choice) for row in rows for choice in row["choices"]]
    requests = [Instance("loglikelihood", {}, (row["query"], choice), 0) for row, choice in pairs]
    answers = harness.loglikelihood(requests, disable_tqdm=True)
    values: dict[str, list[float]] = {}
    for (row, _), (logprob, _) in zip(pairs, answers, strict=True):
        values.setdefault(row["item_id"], []).append(logprob)
    return values


def timed(side: str, model: Path, out: Path, path: str | None) -> float | None:
    """CPU seconds of one side in a new process; None when its package is missing."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if path is not None:
        environment["PYTHONPATH"] = path
    command = [sys.executable, "-m", "perf.evaluation", "--side", side, "--model", str(model), "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        if side == "lm-eval" and "No module named 'lm_eval'" in child.stderr:
            return None
        raise SystemExit(f"{side} failed:\n{child.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(model: Path, runs: int, path: str | None, scratch: Path) -> None:
    """The table and the summary."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    answers: dict[str, dict[str, list[float]]] = {}
    for _ in range(runs):
        for side in SIDES:
            spent = timed(side, model, scratch / f"{side}.json", path if side == "lm-eval" else None)
            if spent is not None:
                seconds[side].append(spent)
                answers[side] = json.loads((scratch / f"{side}.json").read_text(encoding="utf-8"))
    ours = statistics.median(seconds["ours"])
    parts = [f"summary: {sum(map(len, answers['ours'].values()))} choices, load {os.getloadavg()[0]:.1f}"]
    print(f"{'':12} {'CPU s':>8} {'ours = 1':>9} {'differs by':>11}")
    for side, given in answers.items():
        apart = max(abs(a - b) for name in given for a, b in zip(given[name], answers["ours"][name], strict=True))
        median = statistics.median(seconds[side])
        print(f"{side:12} {median:8.1f} {median / ours:9.2f} {apart:11.1e}")
        parts.append(f"{side} {median:.1f} CPU s" + ("" if side == "ours" else f" (within {apart:.0e})"))
    if "lm-eval" in answers and ours > statistics.median(seconds["lm-eval"]):
        parts.append("goal missed: at most lm-eval's")
    print("\n" + "; ".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of scoring items, next to lighteval and lm-eval.")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of each side (default 3)")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder (default: random weights)")
    parser.add_argument("--lm-eval", help="the folder that lm-eval is installed in")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.side:
            values = score(chosen.side, chosen.model, Path(scratch))
            chosen.out.write_text(json.dumps(values), encoding="utf-8")
            return
        model = chosen.model.resolve() if chosen.model else Path(scratch) / "model"
        if not chosen.model:
            new_model(model)
        compare(model, chosen.runs, chosen.lm_eval, Path(scratch))


if __name__ == "__main__":
    main()

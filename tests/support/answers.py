"""Answers of models that never were: item tables with known training noise and known effects."""

from pathlib import Path

import numpy as np

from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import write_table

TASKS = ("arc_easy", "mmlu", "piqa")


def write_arm(
    folder: Path,
    seeds: int,
    shift: float = 0.0,
    noise: float = 0.5,
    items: int = 60,
    held_out: bool = True,
    draw: int = 0,
) -> Path:
    """An arm's folder. `shift` lowers the right choice's and the documents' nats, `noise` moves whole seeds."""
    difficulty = np.random.default_rng(1).normal(-30, 5, (items, 3))  # the same for every arm
    evaluate = folder / "data/evaluate"
    evaluate.mkdir(parents=True, exist_ok=True)
    for seed in range(1, seeds + 1):
        rng = np.random.default_rng([draw, seed])
        moved = rng.normal(shift, noise)
        logprobs = difficulty + rng.normal(0, 0.5, (items, 3))
        logprobs[:, 0] += moved
        rows = [detail(item, logprobs[item].tolist()) for item in range(items)]
        write_table(evaluate / f"seed-{seed}.parquet", rows, DETAIL)
        if held_out:
            nats = 700 + 60 * np.random.default_rng(2).normal(size=20) + 10 * rng.normal(size=20) - 10 * moved
            write_table(
                evaluate / f"heldout-seed-{seed}.parquet", [document(n, x) for n, x in enumerate(nats)], HELDOUT
            )
    return folder


def detail(item: int, logprobs: list[float]) -> dict:
    """A DETAIL row, with the right choice first and subjects for mmlu."""
    task = TASKS[item % len(TASKS)]
    return {
        "item_id": f"{task}/{item:06d}",
        "task": task,
        "group": f"subject {item % 5}" if task == "mmlu" else None,
        "gold": 0,
        "predicted": int(np.argmax(logprobs)),
        "predicted_norm": 0,
        "correct": bool(np.argmax(logprobs) == 0),
        "correct_norm": False,
        "choices": [" the right one", " wrong", " né"],
        "bytes": [13, 5, 3],
        "logprobs": logprobs,
    }


def document(number: int, nats: float) -> dict:
    """A HELDOUT row."""
    name = ("stories", "textbook")[number % 2]
    return {"set": name, "document_id": f"{name}/{number:06d}", "nats": float(nats), "tokens": 200, "bytes": 700}

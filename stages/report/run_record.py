"""data/report/run.html: where, when and at what cost this was made. It differs from run to run, so no hash covers it.

DVC leaves the page out (.dvcignore): two runs of equal results, on two machines or at two commits, have equal outs.
"""

import csv
import json
import os
import platform
import re
from datetime import UTC, datetime
from typing import Any

from cosmopedia.core.lineage import store_root
from cosmopedia.execution.environment import PACKAGES, processor, read_runs, version_of
from cosmopedia.execution.mlflow_params import all_params, changed_params
from cosmopedia.execution.rates import read_rates
from cosmopedia.execution.revision import git_revision
from cosmopedia.pages import page_template
from stages.report.page import HERE, number

LONG = re.compile(r"\d{4,}")  # in a rate's name: a number of parameters
GENERATION = ("label", "pilot", "generate")  # each leaves <store root>/runs/<stage>.json


def render_run(profile: str) -> str:
    """The page about the run, which is no result."""
    return page_template(HERE, "run.html.j2").render(
        profile=profile,
        environment=environment_rows(profile),
        changed=changed_rows(),
        throughput=throughput_rows(),
        curve=throughput_curve(),
        generation=generation_rows(),
        stages=stage_rows(profile),
    )


def environment_rows(profile: str) -> list[list[str]]:
    """What made this page: the code, the machine, the libraries."""
    return [
        ["written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")],
        ["git revision", git_revision()],
        ["DVC experiment", os.environ.get("DVC_EXP_NAME") or "none"],
        ["profile", profile],
        ["compute file", os.environ.get("COSMO_COMPUTE") or "local"],
        ["machine", f"{platform.node()}, {platform.platform()}"],
        ["processor", f"{os.cpu_count()} x {processor()}"],
        ["Python", platform.python_version()],
        *[[name, version_of(name) or "not installed"] for name in PACKAGES],
    ]


def generation_rows() -> dict[str, list[list[str]]]:
    """What each stage that sends requests sent, reused and cost the last time it ran, by stage."""
    return {stage: rows for stage in GENERATION if (rows := _flat(_record(stage)))}


def stage_rows(profile: str) -> list[list[str]]:
    """(stage, its time, CPU seconds, peak MB) of each stage's last run with a profile that came to its end, in their
    order; what DVC took from its cache ran earlier, or elsewhere."""
    last = {run["stage"]: run for run in read_runs() if run.get("profile") == profile and run.get("outcome") == "done"}
    runs = sorted(last.values(), key=lambda run: run["began"])
    rows = [[run["ended"] - run["began"], run.get("cpu_seconds"), run.get("peak_mb")] for run in runs]
    names = [run["stage"] for run in runs]
    if len(rows) > 1:
        seconds, cpu, peak = ([value or 0 for value in column] for column in zip(*rows, strict=True))
        rows.append([sum(seconds), sum(cpu), max(peak)])
        names.append("all of them")
    words = [["-" if value is None else f"{value:,.0f}" for value in row] for row in rows]
    return [[name, *row] for name, row in zip(names, words, strict=True)]


def changed_rows() -> list[list[str]]:
    """Params that differ from those of the commit that this work is based on."""
    return [[name, value] for name, value in sorted(changed_params(all_params()).items())]


def throughput_rows() -> list[list[str]]:
    """Tokens per second that this store has measured: of each generation model and machine, and of each training."""
    generation = {
        _model_and_place(name): (
            rate["tokens_per_second"],
            f"{rate.get('gpus') or 'no'} GPU, measured {rate.get('measured', '')}",
        )
        for name, rate in read_rates(store_root() / "rates.json").items()
        if isinstance(rate, dict) and "tokens_per_second" in rate
    }
    training = {
        LONG.sub(lambda digits: f"{int(digits[0]):,} parameters", name): (rate, "training")
        for name, rate in read_rates(store_root() / "train/rates.json").items()
    }
    return [[name, number(round(rate, 1)), note] for name, (rate, note) in (generation | training).items()]


def throughput_curve() -> dict[str, str] | None:
    """Tokens per second over generate's last run: the `points` of a line in a box of 600 x 100, `highest`, `minutes`.

    None where there is no curve: nothing was sent, or all of it within one interval.
    """
    try:
        with (store_root() / "runs/generate.throughput.csv").open(newline="", encoding="utf-8") as stream:
            measured = [(float(row["seconds"]), float(row["tokens_per_second"])) for row in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if len(measured) < 2:
        return None
    length, highest = measured[-1][0], max(rate for _, rate in measured)
    if not (length > 0 and highest > 0):
        return None
    points = (f"{600 * at / length:.1f},{100 - 100 * rate / highest:.1f}" for at, rate in measured)
    return {"points": " ".join(points), "highest": number(round(highest, 1)), "minutes": number(round(length / 60, 1))}


def _model_and_place(name: str) -> str:
    """A rate's name for people: `<compute file> [<model>, <revision>, ...]` in the store."""
    place, _, identity = name.partition(" ")
    try:
        return f"{json.loads(identity)[0]} on {place}"
    except (ValueError, LookupError, TypeError):
        return name


def _record(stage: str) -> dict[str, Any]:
    """A run's record; {} when there is none, or only half of one. It must never stop the report."""
    try:
        record = json.loads((store_root() / "runs" / f"{stage}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _flat(record: dict[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in record.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, f"{name}: ")
        elif value is not None:
            rows.append([name, number(value)])
    return rows

"""What must hold before anything is published. Every refusal names what to do."""

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import Params, load
from cosmopedia.execution.earlier import lock_content
from cosmopedia.execution.revision import file_at
from cosmopedia.execution.versions import read_json
from cosmopedia.licences import Terms
from cosmopedia.publishing.scan import Finding

METRICS = Path("metrics")
SHOWN = 5  # row ids in a message


class PublishParams(Params):
    """params.yaml's `publish`, which no stage reads."""

    allow: list[str]  # licences and models that are passed on though it is unknown that they allow it, or they do not


def settings() -> PublishParams:
    return load("publish", PublishParams)


def metrics(stage: str) -> dict[str, Any]:
    """metrics/<stage>.json; `DataError` when it is missing."""
    path = METRICS / f"{stage}.json"
    try:
        return read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage {stage} (dvc repro {stage}), or dvc pull") from None


def check_recorded(folder: Path, revision: str) -> None:
    """`ConfigError` when the committed dvc.lock has another hash for a folder: the revision would not make it."""
    lock = lock_content(file_at(revision, "dvc.lock")).get("stages") or {}
    recorded = {out["path"]: out.get("md5") for stage in lock.values() for out in stage.get("outs") or ()}
    digest = folder_md5(folder)
    if recorded.get(folder.as_posix()) != digest:
        raise ConfigError(
            f"{folder} has the hash {digest}, but dvc.lock at {revision[:12]} has {recorded.get(folder.as_posix())}:"
            " that revision would not make it; commit dvc.lock after dvc repro, or run dvc checkout"
        )


def folder_md5(folder: Path) -> str:
    """DVC's hash of a folder."""
    entries = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            entries.append({"md5": digest, "relpath": path.relative_to(folder).as_posix()})
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def check_decontamination(documents: int | None = None) -> None:
    """`DataError` when the corpus was not searched for benchmark items, or is not the one that was."""
    counts = metrics("decontaminate")
    if not counts.get("benchmark_items", {}).get("checked"):
        raise DataError(
            "metrics/decontaminate.json: no benchmark item was searched for; an uncontaminated corpus cannot be"
            " promised: run the stages benchmarks and decontaminate"
        )
    if documents is not None and documents != counts["rows_kept"]:
        raise DataError(
            f"data/corpus has {documents:,} documents, but decontaminate kept {counts['rows_kept']:,}"
            " (metrics/decontaminate.json): it is not the decontaminated corpus; run dvc repro report"
        )


def check_licences(whole: Terms, allowed: Iterable[str], training: bool = False) -> None:
    """`ConfigError` when a licence or a model's terms forbid it, or are unknown, and params do not name them."""
    names = {name.lower() for name in allowed}
    refused = {name: why for name, why in whole.refusals(training).items() if name.lower() not in names}
    if refused:
        listed = "; ".join(f"{name}: {why}" for name, why in refused.items())
        what = "this model cannot be passed on" if training else "these texts cannot be passed on"
        raise ConfigError(
            f"{what} by what is known of its licences: {listed}. Leave those rows out (cosmo trace --licence NAME"
            f" --without), or, if you have read the terms, add to publish.allow in params.yaml: {sorted(refused)}"
        )


def check_findings(found: list[Finding], report: Path) -> None:
    """`DataError` when rows have e-mail addresses or secrets; all of them are listed in `report`."""
    if not found:
        report.unlink(missing_ok=True)
        return
    report.parent.mkdir(parents=True, exist_ok=True)
    with report.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("completion_id", "column", "kind"), *((f.completion_id, f.column, f.kind) for f in found)])
    ids = list(dict.fromkeys(finding.completion_id for finding in found))
    counts = ", ".join(f"{sum(f.kind == kind for f in found)} {kind}(s)" for kind in ("email", "secret"))
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    raise DataError(
        f"data/corpus: {counts} in {len(ids):,} row(s): {', '.join(ids[:SHOWN])}{more}; all are in {report}. Look at"
        " them (cosmo trace ID), then set clean.personal_data to mask or drop and run dvc repro, or publish with"
        " --mask, which replaces them in prompts and seeds too"
    )

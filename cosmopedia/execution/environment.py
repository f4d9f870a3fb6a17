"""What a stage ran in: code, machine, packages, engines. Kept for each run, outside of all outs and hashes.

`<store root>/runs/stages.jsonl` gets a line when a stage begins and one when it ends (`cosmo status --runs` shows
them). A thread collects the first one, so that no stage waits for it.
"""

import json
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from cosmopedia.core.errors import CosmoError
from cosmopedia.core.lineage import store_root
from cosmopedia.core.params import read_yaml
from cosmopedia.execution.compute import compute_path, load_compute
from cosmopedia.execution.redaction import redact
from cosmopedia.execution.revision import git_revision

PACKAGES = ("dvc", "torch", "transformers", "datatrove", "tokenizers", "polars", "pyarrow")
FURTHER = ("numpy", "numba", "scikit-learn", "umap-learn", "sentence-transformers", "lighteval", "mlflow", "nanotron")
GPUS = Path("/proc/driver/nvidia/gpus")
STATUS = Path("/proc/self/status")
END_SECONDS = 2.0  # at most so long does a stage's end wait for the line of its beginning


def runs_path() -> Path:
    """The file of lines, shared by all checkouts of a store."""
    return store_root() / "runs" / "stages.jsonl"


def environment() -> dict[str, Any]:
    """Code, machine, packages and engines of this process."""
    return {
        "git_revision": git_revision(),
        "profile": _profile(),
        "experiment": os.environ.get("DVC_EXP_NAME"),
        "compute": compute_path().stem,
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": gpus(),
        "python": platform.python_version(),
        "packages": {name: version for name in (*PACKAGES, *FURTHER) if (version := version_of(name))},
        **_engines(),
    }


def processor() -> str:
    """The processor's name: another one rounds differently, so that a model writes other words."""
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    return next(names, platform.machine())


def gpus() -> list[str]:
    """The models of this machine's NVIDIA GPUs, as their driver lists them."""
    lines = (line for path in sorted(GPUS.glob("*/information")) for line in _lines(path))
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def version_of(package: str) -> str | None:
    """An installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def recorded(stage: str) -> Iterator[None]:
    """Keep a line about the run of a stage. Nothing in here can stop it."""
    run, began = uuid4().hex[:12], time.time()
    thread = threading.Thread(target=_keep, args=({"run": run, "stage": stage, "began": began}, True), daemon=True)
    thread.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except (KeyboardInterrupt, SystemExit):
        outcome = "stopped"
        raise
    finally:
        thread.join(END_SECONDS)
        _keep({"run": run, "ended": time.time(), "outcome": outcome, **used()}, False)


def used() -> dict[str, Any]:
    """CPU seconds of this process and of those that it started and that have ended; the largest one's memory in MB."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in (own, others))
    unit = 1 if sys.platform == "darwin" else 1024
    # Not ru_maxrss on Linux: it begins with what DVC had when it started this process.
    status = dict(line.split(":", 1) for line in _lines(STATUS))
    peak = int(status["VmHWM"].split()[0]) * 1024 if "VmHWM" in status else own.ru_maxrss * unit
    return {"cpu_seconds": round(seconds, 1), "peak_mb": max(peak, others.ru_maxrss * unit) // 1_000_000}


def read_runs() -> list[dict[str, Any]]:
    """The runs of stages, oldest first; one without `outcome` still goes on, or was killed."""
    runs: dict[str, dict[str, Any]] = {}
    for line in _lines(runs_path()):
        try:
            entry = json.loads(line)
            runs.setdefault(entry["run"], {}).update(entry)
        except (ValueError, KeyError, TypeError):  # cut short by a kill
            continue
    return sorted((run for run in runs.values() if "stage" in run), key=lambda run: run["began"])


def _keep(entry: dict[str, Any], with_environment: bool) -> None:
    try:
        content = entry | (environment() if with_environment else {})
        path = runs_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(
                redact(json.dumps(content)).encode() + b"\n"
            )  # one write: lines of several processes stay whole
    except Exception as error:  # a record is worth no stage
        print(f"warning: {runs_path()}: {error}; this run is not listed", file=sys.stderr, flush=True)


def _engines() -> dict[str, Any]:
    """What the compute file starts servers and trainings with: engine, image and flags."""
    try:
        compute = load_compute()
    except CosmoError:  # the stage says so itself, if it needs the file
        return {}
    serving, training = compute.serving, compute.training
    containers = {"serving": getattr(serving, "container", None), "training": training.container}
    return {
        "engine": serving.engine,
        "images": {name: one.image for name, one in containers.items() if one is not None},
        "arguments": list(getattr(serving, "arguments", ())),
    }


def _profile() -> str | None:
    try:
        return read_yaml(Path("params.yaml")).get("profile")
    except CosmoError:
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []

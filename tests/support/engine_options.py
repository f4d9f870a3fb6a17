"""The options that TGI and vLLM document, and what a server's job script starts: tests compare the two."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cosmopedia.execution.compute import GpuJobs
from cosmopedia.execution.slurm.fleet import SlurmFleet
from cosmopedia.generation.model import GenerationModel

ROOT = Path(__file__).parents[2]
LISTS = {"tgi": "tgi-3.3.7.txt", "vllm": "vllm-0.32.0.txt"}
FILES = {"tgi": "slurm-h100", "vllm": "slurm-h100-vllm"}
PROGRAMS = {"tgi": ["text-generation-launcher"], "vllm": ["vllm", "serve"]}

FAKE = """#!/usr/bin/env python3
import json, os, sys, time
from pathlib import Path
calls = Path(os.environ["FAKE_CALLS"])
with calls.open("a") as file:
    print(json.dumps({"words": [Path(sys.argv[0]).name, *sys.argv[1:]], "environment": dict(os.environ)}), file=file)
while sys.argv[1] == "run" and "FAKE_RUNS" in os.environ:
    time.sleep(0.1)
raise SystemExit(int(os.environ.get("FAKE_STATUS", "0")) if sys.argv[1] == "run" else 0)
"""


class Option(NamedTuple):
    """One documented option."""

    takes_value: bool
    variable: str = ""  # the environment variable that sets it too
    values: tuple[str, ...] = ()  # empty: any


def documented(engine: str) -> dict[str, Option]:
    """The engine's own options, of the version in the list's name."""
    options = {}
    for line in (ROOT / "tests/support/engines" / LISTS[engine]).read_text().splitlines():
        if not line.startswith("#"):
            name, kind, *rest = line.split()
            values = tuple(rest[1].split(",")) if len(rest) > 1 else ()
            options[name] = Option(kind == "value", rest[0] if rest else "", values)
    return options


def serving(example: str, **changes: Any) -> GpuJobs:
    """The repository's own example for TGI or vLLM, without its container."""
    content = yaml.safe_load((ROOT / f"compute/{FILES[example]}.yaml").read_text())["serving"]
    return GpuJobs.model_validate(content | {"container": None} | changes)


def fleet(serving: GpuJobs, quantisation: str | None = None) -> SlurmFleet:
    return SlurmFleet(
        "generate",
        GenerationModel(Path("models/x"), "org/name", "main", quantisation, 400, "org/name", "main"),
        serving,
    )


def write_fakes(folder: Path) -> dict[str, str]:
    """Programs that only note how they were called; returns the environment in which they are found first."""
    (folder / "bin").mkdir()
    for name in ("text-generation-launcher", "vllm", "srun", "apptainer", "docker"):
        (folder / "bin" / name).write_text(FAKE)
        (folder / "bin" / name).chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_CALLS": str(folder / "calls.jsonl")}


def calls(folder: Path) -> list[dict[str, Any]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(script: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """The engine of a job script, started as the supervisor starts it."""
    begin = script.index("in_docker() {") if "in_docker() {" in script else script.index("serve() {")
    body = script[begin : script.index("export -f serve")] + "export -f serve\nexec bash -c serve"
    ports = {"PORT": "8001", "COSMO_SECOND_PORT": "8002", "COSMO_THIRD_PORT": "8003", "COSMO_SERVING_KEY": "the-key"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["bash", "-c", body], env=os.environ | ports | environment, stderr=pipe, text=True, start_new_session=True
    )

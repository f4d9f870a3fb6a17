"""A small DVC repository for sweeps: three stages, which note that they ran."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARAMS = """profile: small
prompts: {topic_probability: 0.25} # how often
train:
  seeds: [1] # a comment
  rates: {}
"""
PROFILE = "prompts:\n  extract_chars: 400 # characters\ntrain: {steps: 10}\n"
# Each stage notes that it ran; train waits for a file, and fails for 13 steps.
STAGE = """
import json, os, sys, time
from pathlib import Path
name, out, *inputs = sys.argv[1:]
notes = Path(os.environ["NOTES"])
with notes.open("a") as stream:
    stream.write(f"{name}\\n")
params = Path("params.yaml").read_text() + Path("profiles/small.yaml").read_text()
if name == "train":
    while not notes.with_name("gate").exists():
        time.sleep(0.05)
    if "steps: 13" in params:
        print("train: error: 13 steps bring bad luck; take another number", file=sys.stderr)
        sys.exit(3)
Path(out).write_text(json.dumps({"params": params, "template": Path("template.txt").read_text()}))
"""
PIPELINE = """
stages:
  sources:
    cmd: python stage.py sources sources.json
    deps: [stage.py]
    outs: [sources.json]
  prompts:
    cmd: python stage.py prompts prompts.json
    deps: [sources.json, template.txt]
    params: [prompts, profiles/small.yaml: [prompts]]
    outs: [prompts.json]
  train:
    cmd: python stage.py train train.json
    deps: [prompts.json]
    params: [train, profiles/small.yaml: [train]]
    outs: [train.json]
"""
SWEEP = """
question: What do the steps do?
control: base
seeds: [1, 2]
arms:
  base: {}
  more: {set: {train.steps: 20}}
  unlucky: {set: {train.steps: 13}}
  wording: {replace: {template.txt: other.txt}}
"""


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def write_files() -> None:
    """Params, a profile, two templates, the stages and a sweep, in the current folder."""
    files = {"params.yaml": PARAMS, "profiles/small.yaml": PROFILE, "sweeps/steps.yaml": SWEEP}
    files |= {"template.txt": "one", "other.txt": "two", "stage.py": STAGE, "dvc.yaml": PIPELINE}
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")


def commit_repository(folder: Path, notes: Path) -> dict[str, str]:
    """Put the folder under git and DVC; the environment for what runs there. `cosmopedia` is this working tree's."""
    (folder / "cosmopedia").symlink_to(ROOT / "cosmopedia")
    (folder / ".gitignore").write_text("/*.json\n/.store\n", encoding="utf-8")
    variables = os.environ | {"NOTES": str(notes), "PYTHONPATH": str(ROOT)}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    git(folder, "init", "-q")
    for key in ("name", "email"):
        git(folder, "config", f"user.{key}", "t@t")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True, env=variables)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "t")
    return variables

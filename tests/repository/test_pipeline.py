"""The whole pipeline through DVC at a reduced size: what README says of `make repro`, of `dvc repro` and of a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from cosmopedia.store.segments import read_frames
from tests.support.own_params import text_of
from tests.support.slurm_cluster import SlurmCluster, slurm  # noqa: F401  (the fixture)

ROOT = Path(__file__).parents[2]
DVC = str(Path(sys.executable).parent / "dvc")
PUBLISHED = ["prompt", "text_token_length", "text", "seed_data", "format", "audience"]
TO_THE_COMPLETIONS = {"prompts", "pilot", "generate"}
AFTER_THE_COMPLETIONS = {
    *("faithful", "selfcheck", "clean", "dedup", "paraphrases", "decontaminate", "coverage", "mix", "tokenize_corpus"),
    *("train", "export", "evaluate", "report"),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first checkout takes minutes, and counts for its test


def checkout(folder: Path, compiled: Path = ROOT) -> Path:
    """A git repository with this working tree's files and the profile smoke; nothing in DVC's cache.

    What numba has compiled in the checkout `compiled` comes along.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for kernel in (compiled / "stages").rglob("__pycache__/*.nb[ci]"):
        place = folder / kernel.relative_to(compiled)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(kernel, place)
    (folder / "dvc.lock").unlink(missing_ok=True)
    demonstrations = folder / "data/samples/generator/demonstrations.jsonl"
    rows = demonstrations.read_text(encoding="utf-8").splitlines(keepends=True)
    demonstrations.write_text("".join(rows[::8]), encoding="utf-8")  # still enough for 4,096 tokens
    (folder / "params.yaml").write_text(text_of("params.yaml"), encoding="utf-8")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def environment(store: Path) -> dict[str, str]:
    """The environment of a stage: this interpreter's tools, the given store, no hub."""
    keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DVC_ROOT", "MLFLOW_TRACKING_URI")}
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**keep, "PATH": tools, "COSMO_STORE": str(store), "HF_HUB_OFFLINE": "1"}


def dvc(folder: Path, store: Path, *arguments: str) -> str:
    """Run DVC in a checkout and return its output. A failure shows the end of it."""
    result = subprocess.run(
        [DVC, *arguments], cwd=folder, env=environment(store), capture_output=True, text=True, timeout=1800
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"dvc {' '.join(arguments)} failed:\n{output[-4000:]}"
    return output


@pytest.fixture(scope="module")
def repro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkout in which `dvc repro` has run once, and its completion store."""
    base = tmp_path_factory.mktemp("pipeline")
    folder = checkout(base / "first")
    dvc(folder, base / "store", "repro")
    return folder, base / "store"


def lend_cache(source: Path, target: Path, *stages: str) -> None:
    """Give a checkout the run cache of another one, and of DVC's cache the outs of the stages that begin so."""
    shutil.copytree(source / ".dvc/cache/runs", target / ".dvc/cache/runs")
    lock = YAML(typ="safe").load((source / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    digests = [out["md5"] for name, stage in lock.items() if name.startswith(stages) for out in stage["outs"]]
    objects = source / ".dvc/cache/files/md5"
    while digests:
        digest = digests.pop()
        name = f"{digest[:2]}/{digest[2:]}"
        copy = target / ".dvc/cache/files/md5" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(objects / name, copy)
        if digest.endswith(".dir"):
            digests += [entry["md5"] for entry in json.loads(copy.read_text(encoding="utf-8"))]


def stages_run(output: str) -> set[str]:
    """The stages that a `dvc repro` ran."""
    return {name.split("@")[0] for name in re.findall(r"Running stage '([^']+)'", output)}


def bytes_of(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for pattern in patterns for p in sorted(folder.glob(pattern))
    }


def test_repro_goes_from_seed_sources_to_an_evaluated_model(repro: tuple[Path, Path]) -> None:
    folder, _ = repro
    scores = json.loads((folder / "metrics/evaluate.json").read_text(encoding="utf-8"))
    assert len(scores["tasks"]) == 10 and len(scores["panels"]["article"]["tasks"]) == 9
    assert 0 <= scores["panels"]["article"]["acc"] <= 1 and len(scores["heldout"]) == 7
    published = pl.concat([pl.read_parquet(p) for p in sorted((folder / "data/decontaminate").glob("*.parquet"))])
    assert published.columns[1:7] == PUBLISHED and published.height > 0
    assert published["text"].str.len_chars().min() > 0

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "models/export/seed-1")
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/export/seed-1")
    written = model.generate(**tokenizer("The rocks", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert written.shape[1] > 4

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    evaluated = [run for run in runs if "heldout_bpb" in run.data.metrics]
    assert evaluated and any("git" in key for key in {**evaluated[0].data.tags, **evaluated[0].data.params})


def test_a_second_repro_is_up_to_date(repro: tuple[Path, Path]) -> None:
    folder, store = repro
    started = time.monotonic()
    assert "up to date" in dvc(folder, store, "repro")
    assert "up to date" in dvc(folder, store, "status")
    print(f"dvc repro and dvc status with nothing changed: {time.monotonic() - started:.1f} s")


@pytest.mark.long  # six minutes; its servers, arrays and bytes have tests of their own
def test_another_checkout_gives_the_same_bytes_on_slurm(
    repro: tuple[Path, Path],
    slurm: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a store of its own; servers and corpus tasks are jobs. What is none comes from DVC's run cache, and so do
    embed, cluster and label, whose arrays and servers have tests of their own."""
    folder, _ = repro
    other = checkout(tmp_path / "second", compiled=folder)
    lend_cache(folder, other, "sources@", "generator", "benchmarks", "embed", "cluster", "label")
    yaml = YAML()
    cluster = yaml.load((other / "compute/local.yaml").read_text(encoding="utf-8"))
    resources = {"time": "20", "cpus": 2}
    cluster["serving"] |= {"launcher": "slurm", "instances": 2, "slurm": resources, "startup_timeout_s": 240}
    cluster["data"] |= {"executor": "slurm", "tasks": 2, "workers": 1, "slurm": resources}
    with (other / "compute/test.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(cluster, stream)
    monkeypatch.setenv("COSMO_COMPUTE", "test")
    monkeypatch.setenv("COSMO_NODE_ADDRESS", "127.0.0.1")

    def run(*arguments: str) -> str:
        return dvc(other, tmp_path / "store", "repro", *arguments)

    def compare(*patterns: str) -> None:
        first, second = bytes_of(folder, *patterns), bytes_of(other, *patterns)
        assert first.keys() == second.keys() and len(first) > 20
        assert [name for name in first if first[name] != second[name]] == []

    assert stages_run(run("prompts", "benchmarks")) == {"topics", "prompts"}
    compare("data/prompts/**/*.parquet", "data/cluster/*", "data/benchmarks/*")
    adopting = run("-s", "pilot", "generate")
    assert "2 job(s) of cosmo-" in adopting and "adopted" in adopting
    columns = ["completion_id", "prompt", "model_revision", "sampling_seed", "key"]
    here, there = (pl.read_parquet(path / "data/generate/*.parquet").select(columns) for path in (folder, other))
    assert here.equals(there)
    shutil.rmtree(other / "data/generate")  # two servers have other batches, which move the last digits of a model
    shutil.copytree(folder / "data/generate", other / "data/generate")
    run("-s", "natural", "faithful", "clean", "dedup", "paraphrases", "decontaminate", "mix", "tokenize_corpus")
    assert slurm.jobs() == []
    compare("data/clean/**/*.parquet", "data/decontaminate/**/*.parquet", "data/tokenize_corpus/**/*.ds*")


def test_an_edited_template_reruns_only_what_depends_on_it(repro: tuple[Path, Path]) -> None:
    folder, store = repro
    cell = pl.read_parquet(folder / "data/prompts/web-wikihow.parquet")
    template = folder / "prompts/web/wikihow.txt"
    text = template.read_text(encoding="utf-8")
    assert "practical tutorial" in text
    template.write_text(text.replace("practical tutorial", "handy tutorial"), encoding="utf-8")
    changed = set(re.findall(r"^(\w+)(?:@\w+)?:$", dvc(folder, store, "status"), re.MULTILINE))
    assert changed == {"prompts", "faithful"}  # DVC names what follows once the prompts have changed
    assert stages_run(dvc(folder, store, "repro", "generate")) == TO_THE_COMPLETIONS
    dag = dvc(folder, store, "dag", "--mermaid").replace('"', "")
    names = dict(re.findall(r"(node\d+)\[(\w+)\]", dag))
    arrows = re.findall(r"(node\d+)-->(node\d+)", dag)
    reached = {"faithful", "selfcheck", "clean"}
    for _ in names:
        reached |= {names[to] for start, to in arrows if names.get(start) in reached}
    assert reached == AFTER_THE_COMPLETIONS
    record = json.loads((store / "runs/generate.json").read_text(encoding="utf-8"))
    pilot = json.loads((store / "runs/pilot.json").read_text(encoding="utf-8"))
    assert record["sent"] + pilot["sent"] == cell.height < record["from_store"]


def test_a_killed_generation_goes_on_and_repeats_nothing(repro: tuple[Path, Path]) -> None:
    folder, store = repro
    profile = folder / "profiles/smoke.yaml"
    text = profile.read_text(encoding="utf-8")
    profile.write_text(re.sub(r"max_new_tokens: 48", "max_new_tokens: 96", text), encoding="utf-8")
    before = len(keys_of(store))
    process = subprocess.Popen(
        [DVC, "repro", "-s", "generate"], cwd=folder, env=environment(store), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: len(keys_of(store)) > before + 3 or process.poll() is not None, 180)
    assert process.poll() is None, "generate ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survived = keys_of(store)
    assert len(survived) > before
    dvc(folder, store, "repro", "-s", "generate")
    assert len(set(keys_of(store))) == len(keys_of(store))
    record = json.loads((store / "runs/generate.json").read_text(encoding="utf-8"))
    assert record["from_store"] == len(survived) - before
    rows = pl.concat([pl.read_parquet(p) for p in sorted((folder / "data/generate").glob("*.parquet"))])
    assert rows.height == record["requests"] and set(survived[before:]) <= set(rows["key"])


def keys_of(store: Path) -> list[str]:
    """Every key in the store's segments, in the order in which they were written, repetitions included."""
    frames = [frame for path in sorted((store / "completions").glob("*.seg")) for frame in read_frames(path)]
    return [frame.keys[n : n + 16].hex() for frame in frames for n in range(0, len(frame.keys), 16)]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def test_a_mistake_gives_one_sentence_through_dvc(repro: tuple[Path, Path]) -> None:
    folder, store = repro
    template = folder / "prompts/web/blogpost.txt"
    text = template.read_text(encoding="utf-8")
    template.write_text(text.replace("$extract", "$extrcat"), encoding="utf-8")
    result = subprocess.run(
        [DVC, "repro", "prompts"], cwd=folder, env=environment(store), capture_output=True, text=True
    )
    template.write_text(text, encoding="utf-8")
    profile = folder / "profiles/smoke.yaml"
    right = profile.read_text(encoding="utf-8")
    profile.write_text(re.sub(r"logits_mb: \d+", "logits_mb: many", right), encoding="utf-8")
    late = subprocess.run(
        [DVC, "repro", "-f", "-s", "sources@web"], cwd=folder, env=environment(store), capture_output=True, text=True
    )
    profile.write_text(right, encoding="utf-8")
    assert "sources web: error: nothing was run, since the settings are wrong: evaluate.logits_mb" in late.stderr
    assert result.returncode != 0 and "Traceback" not in result.stderr + result.stdout
    assert re.search(r"prompts: error: .*prompts/web/blogpost.txt:\d+: '\$extrcat' is no slot", result.stderr)

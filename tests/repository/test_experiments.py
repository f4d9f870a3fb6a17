"""What docs/experiments.md says of comparing, drawing, merging and handing on, with dvc.yaml's own declarations."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml

from cosmopedia.core.files import write_text
from cosmopedia.evaluation.scores import score_table
from stages.report.facts import Cell
from stages.report.headline import removed_table, tokens_table
from stages.train.metrics import loss_curve
from stages.train.steps import Step
from tests.support.s3_server import s3_server

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
BEFORE = {
    "tokens": 103356, "kept": 0.9637, "loss": 4.197, "heldout_bpb": 2.659, "early_bpb": 3.098,
    "early_acc_norm": 0.3796, "early_acc_norm_se": 0.03279, "early_acc_norm_floor": 0.3426,
    "contaminated": 0.02714, "duplicates": 0.0012, "train_loss": 3.918,
    "prompt_duplicates": 0.0, "truncated": 0.7621, "failed": 0.0,
}  # fmt: skip
AFTER = BEFORE | {
    "tokens": 103997, "kept": 0.9651, "loss": 4.203, "early_acc_norm": 0.3843, "early_acc_norm_se": 0.0329,
    "contaminated": 0.02317, "duplicates": 0.0027, "heldout_bpb": 2.651, "early_bpb": 3.092, "train_loss": 3.921,
    "truncated": 0.7581,
}  # fmt: skip


def run(*command: str, status: int = 0) -> str:
    """Run a command in the current folder and return its output."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "COLUMNS": "100", "DVC_NO_ANALYTICS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == status, f"{command}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


def commit(message: str) -> None:
    run("git", "add", "-A")
    run("git", "commit", "-qm", message)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with this one's settings of plots and merges, and no stage yet; the current folder."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "-q", "-b", "main")
    run("git", "config", "user.name", "t")
    run("git", "config", "user.email", "t@t")
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
    for name in (".dvc/config", ".dvc/.gitignore", ".dvc/plots.html", ".gitattributes", ".dvcignore"):
        shutil.copyfile(ROOT / name, name)
    return tmp_path


def write_pipeline(**content: Any) -> None:
    write_text(Path("dvc.yaml"), yaml.safe_dump(content))


# Metrics


@pytest.mark.slow
def test_a_template_edit_is_compared_in_a_hundred_columns(repository: Path):
    metrics = PIPELINE["stages"]["report"]["metrics"]
    deps = ["prompts", "metrics/clean.json"]
    write_pipeline(stages={"report": {"cmd": "true", "deps": deps, "metrics": metrics}})
    for template, numbers in (("first", BEFORE), ("second", AFTER)):
        write_text(Path("prompts/web/blogpost.txt"), template)
        write_text(Path("metrics/clean.json"), template)
        write_text(Path("metrics/report.json"), json.dumps(numbers))
        run("dvc", "commit", "-q", "-f")
        if numbers is BEFORE:
            commit("first")
    diff = run("dvc", "metrics", "diff")
    run("dvc", "exp", "save", "-n", "longer-blog")
    drop = ".*/|prompts$|Created"  # the deps, and when
    shown = run("dvc", "exp", "show", "--only-changed", "--no-pager", "--drop", drop)
    tables = {"diff": diff, "exp show": shown, "exp diff": run("dvc", "exp", "diff", "HEAD", "longer-blog")}
    widths = {name: max(map(len, table.splitlines())) for name, table in tables.items()}
    assert max(widths.values()) <= 100, widths
    changed = {name for name in BEFORE if BEFORE[name] != AFTER[name]}
    for name in ("diff", "exp diff"):
        assert {line.split()[1] for line in tables[name].splitlines()[1:] if line} == changed, tables[name]
    assert {"tokens", "kept", "loss", "heldout_bpb", "early_bpb"} <= set(shown.split()), shown
    assert ".dir" not in shown  # a hash takes the place of three numbers
    assert not set(BEFORE) & set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])  # nor is one a column


# Plots

DRAWN = {  # x, y
    "metrics/plots/train_loss.csv": ("step", "loss"),
    "learning_rate": ("step", "learning_rate"),
    "metrics/plots/generator_loss.csv": ("step", "loss"),
    "metrics/plots/evaluate.csv": ("acc_norm", "task"),
    "metrics/plots/prompts.csv": ("prompts", "format"),
    "metrics/plots/removed.csv": ("documents", "reason"),
    "metrics/plots/contamination.csv": ("documents", "task"),
    "metrics/plots/tokens.csv": ("tokens", "source"),
}


def write_tables() -> None:
    """The tables of all plots, by the code that writes them where that is a function."""
    scores = {name: 0.5 for metric in ("bpb", "acc_norm", "acc") for name in (metric, f"{metric}_stderr")}
    scores |= {"floor": {"bpb": 4.5, "acc_norm": 0.25, "acc": 0.25}}
    facts: Any = SimpleNamespace(
        metrics={"clean": {"removed": {"short": 3}}, "dedup": {"removed": {}}, "decontaminate": {"removed": {}}},
        cells=[Cell("web", "blogpost", 2, 300)],
    )
    tables = {
        "train_loss": loss_curve([[Step(1, 3.0, 0.001, 1.0), Step(2, 2.5, 0.002, 1.0)]]),
        "generator_loss": "step,loss\r\n1,3.5\r\n2,3.0\r\n",
        "evaluate": score_table({"tasks": {"piqa": scores}, "panels": {"early": scores}}),
        "prompts": "source,style,format,audience,prompts,duplicates\nweb,blogpost,blogpost,general,9,0\n",
        "removed": removed_table(facts),
        "contamination": "source,task,documents,items\nweb,arc_easy,2,1\n",
        "tokens": tokens_table(facts),
    }
    for name, table in tables.items():
        write_text(Path(f"metrics/plots/{name}.csv"), table)


def fields(node: Any, channel: str) -> set[str]:
    """The fields that a Vega-Lite specification draws on an axis."""
    if isinstance(node, list):
        return set().union(*(fields(one, channel) for one in node))
    if not isinstance(node, dict):
        return set()
    own = node.get(channel)
    found = {own["field"]} if isinstance(own, dict) and "field" in own else set()
    return found.union(*(fields(value, channel) for key, value in node.items() if key != "data"))


class Loaded(HTMLParser):
    """Collects what a page loads, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


@pytest.mark.slow
def test_each_plot_draws_the_fields_of_its_question_without_a_network(repository: Path):
    write_pipeline(plots=[plot for plot in PIPELINE["plots"] if not isinstance(plot, str)])
    write_tables()
    plots = json.loads(run("dvc", "plots", "show", "--json"))["data"]
    drawn = {name: plot[0]["content"] for name, plot in plots.items()}
    assert drawn.keys() == DRAWN.keys()
    for name, (x, y) in DRAWN.items():
        spec = drawn[name]
        assert x in fields(spec, "x") and fields(spec, "x") <= {x, f"{x}_floor", "low"} and fields(spec, "y") == {y}, (
            name
        )
        assert spec["title"] and all({x, y} <= row.keys() for row in spec["data"]["values"]), name
    titles = [json.dumps(spec["title"]) for spec in drawn.values()]
    assert len(set(titles)) == len(titles)

    run("dvc", "plots", "show")
    page = Loaded()
    page.feed(Path("dvc_plots/index.html").read_text(encoding="utf-8"))
    assert page.scripts == 3 + len(DRAWN) and page.addresses == []  # Vega's three and one per plot, all in the page

    given_by_path = json.loads(run("dvc", "plots", "show", "--json", "metrics/plots/train_loss.csv"))["data"]
    assert {y for several in given_by_path.values() for one in several for y in fields(one["content"], "y")} == {
        "loss"
    }


# Merging and pulled clones: a stage that is paid for, and one that is not

PAID = """
import json, pathlib, shutil, sys
stage, *names = sys.argv[1:]
with open("ran", "a") as log:
    log.write(stage + "\\n")
text = "".join(pathlib.Path(name).read_text() for name in names)
shutil.rmtree(f"data/{stage}", ignore_errors=True)
pathlib.Path(f"data/{stage}").mkdir(parents=True)
pathlib.Path(f"data/{stage}/text").write_text(text)
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path(f"metrics/{stage}.json").write_text(json.dumps({"characters": len(text), "text": text}))
"""


@pytest.fixture
def paid(repository: Path) -> Path:
    """A repository with two stages that have run: `generate` of a template, `report` of that and of a param."""
    write_text(Path("paid.py"), PAID)
    write_text(Path(".gitignore"), "/ran\n/metrics/*\n!/metrics/report.json\n")
    write_text(Path("prompts/template"), "first\n")
    write_text(Path("params.yaml"), "examples: 1\n")
    generate = {
        "cmd": f"{sys.executable} paid.py generate prompts/template",
        "deps": ["prompts", "paid.py"],
        "outs": ["data/generate", "metrics/generate.json"],
    }
    report = {
        "cmd": f"{sys.executable} paid.py report data/generate/text params.yaml",
        "deps": ["data/generate", "metrics/generate.json"],
        "params": ["examples"],
        "outs": ["data/report"],
        "metrics": PIPELINE["stages"]["report"]["metrics"],
    }
    write_pipeline(stages={"generate": generate, "report": report})
    run("dvc", "repro", "-q")
    commit("first")
    return repository


def stages_that_ran() -> list[str]:
    """The stages that have run since the last call."""
    log = Path("ran")
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


@pytest.mark.slow
def test_two_branches_are_merged_by_the_recipe_and_nothing_is_paid_twice(paid: Path):
    run("git", "checkout", "-qb", "template")
    write_text(Path("prompts/template"), "second\n")
    run("dvc", "repro", "-q")
    commit("template")
    run("git", "checkout", "-q", "main")
    write_text(Path("params.yaml"), "examples: 2\n")
    run("dvc", "checkout", "-q")
    run("dvc", "repro", "-q")
    commit("examples")
    assert stages_that_ran() == ["generate", "report", "generate", "report", "report"]
    for side, runs in (("--ours", ["report"]), ("--theirs", [])):  # of the new combination; known the second time
        run("git", "merge", "template", status=1)
        assert "<<<<<<<" not in Path("dvc.lock").read_text() + Path("metrics/report.json").read_text()
        run("git", "checkout", side, "--", "dvc.lock", "metrics/report.json")
        run("dvc", "repro", "-q")
        assert stages_that_ran() == runs
        assert json.loads(Path("metrics/report.json").read_text())["text"] == "second\nexamples: 2\n"
        commit("merged")
        assert run("git", "status", "--short") == ""
        run("git", "reset", "-q", "--hard", "HEAD~1")
        run("dvc", "checkout", "-q")


@pytest.mark.slow
def test_a_changed_out_of_a_pulled_clone_comes_back_from_the_cache(paid: Path):
    shutil.rmtree(".dvc/cache/runs")  # `dvc pull` brings outs, and not the run cache
    stages_that_ran()
    write_text(Path("metrics/generate.json"), "{}")
    shutil.rmtree("data/generate")
    run("dvc", "repro", "-q")
    assert stages_that_ran() == []
    assert Path("data/generate/text").read_text() == "first\n" and "text" in Path("metrics/generate.json").read_text()


def test_every_out_is_cached_so_that_the_run_cache_works():
    uncached = {
        name: out
        for name, stage in PIPELINE["stages"].items()
        for kind in ("outs", "plots")
        for out in stage.get(kind, [])
        if not isinstance(out, str)
    }
    assert uncached == {}, "`cache: false` on a plain out turns the run cache off for its stage"


def test_the_numbers_that_are_compared_are_one_file():
    declared = [m for stage in PIPELINE["stages"].values() for m in stage.get("metrics", [])]
    assert declared == [{"metrics/report.json": {"cache": False}}] and "metrics" not in PIPELINE


# Handing on


@pytest.mark.slow
def test_corpus_and_model_are_fetched_from_a_repository_whose_data_is_in_the_remote_alone(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By name and version, by path, and imported with the revision that they came from."""
    artifacts = PIPELINE["artifacts"]
    outs = [out for stage in PIPELINE["stages"].values() for out in stage["outs"]]
    assert {name: one["path"] in outs for name, one in artifacts.items()} == {"corpus": True, "model": True}
    folders = [one["path"] for one in artifacts.values()]
    made = " && ".join(f"mkdir -p {folder} && echo {folder} > {folder}/README.md" for folder in folders)
    write_pipeline(stages={"make": {"cmd": made, "outs": folders}}, artifacts=artifacts)
    run("dvc", "repro", "-q")
    with s3_server() as server:
        boto3.client("s3", endpoint_url=server).create_bucket(Bucket="team")
        run("dvc", "remote", "add", "-q", "-d", "storage", "s3://team/cosmopedia")
        commit("made")
        run("dvc", "push", "-q")
        shutil.rmtree(".dvc/cache")
        for name, one in artifacts.items():
            run("git", "tag", "-a", f"{name}@v1.0.0", "-m", "first")
            target = tmp_path_factory.mktemp("got") / name
            run("dvc", "artifacts", "get", str(repository), name, "-o", str(target))
            assert (target / "README.md").read_text() == f"{one['path']}\n"
        project = tmp_path_factory.mktemp("project")
        os.chdir(project)
        run("dvc", "init", "-q", "--no-scm")
        run("dvc", "get", str(repository), "data/corpus", "-o", "by_path")
        run("dvc", "import", "--rev", "corpus@v1.0.0", str(repository), "data/corpus", "-o", "corpus")
    assert Path("by_path/README.md").read_text() == Path("corpus/README.md").read_text() == "data/corpus\n"
    source = yaml.safe_load(Path("corpus.dvc").read_text())["deps"][0]["repo"]
    assert source["rev"] == "corpus@v1.0.0" and len(source["rev_lock"]) == 40


@pytest.mark.slow
def test_a_shared_cache_is_writable_for_the_group_whatever_a_users_umask(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A user whose files are private runs a stage; outs are links to the cache, which stays read-only."""
    cache = tmp_path_factory.mktemp("cache") / "team"
    run("dvc", "cache", "dir", "-q", "--local", str(cache))
    for name, value in (("cache.shared", "group"), ("cache.type", "hardlink,symlink,copy")):
        run("dvc", "config", "--local", name, value)
    write_text(Path("text"), "first\n")
    write_pipeline(stages={"make": {"cmd": "cp text out", "deps": ["text"], "outs": ["out"]}})
    former = os.umask(0o077)
    try:
        run("dvc", "repro", "-q")
    finally:
        os.umask(former)
    modes = {path.relative_to(cache): path.stat().st_mode & 0o7777 for path in cache.rglob("*")}
    assert {path.parts[0] for path in modes} == {"files", "runs"}
    folders = {path: mode for path, mode in modes.items() if (cache / path).is_dir()}
    assert set(folders.values()) == {0o2775}, folders
    files = {path: mode for path, mode in modes.items() if path not in folders}
    assert {(path.parts[0], mode) for path, mode in files.items()} == {("files", 0o444), ("runs", 0o664)}, files
    assert Path("out").stat().st_nlink == 2 or Path("out").is_symlink()

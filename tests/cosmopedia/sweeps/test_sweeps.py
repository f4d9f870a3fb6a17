"""Sweeps: arms from a file, what they share, and a run in a small DVC repository that is killed and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cosmopedia.cli.sweep import power_sentences
from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import profile_path
from cosmopedia.evaluation.noise import Noise, Spread
from cosmopedia.evaluation.noise import write as write_noise
from cosmopedia.evaluation.readings import HELD_OUT
from cosmopedia.execution.settings import problems
from cosmopedia.sweeps.costs import link_results, pending
from cosmopedia.sweeps.definition import Sweep, read_sweep
from cosmopedia.sweeps.outlook import check_budget, outlooks
from cosmopedia.sweeps.sharing import Stage, stages_of, waits
from cosmopedia.sweeps.worktrees import set_params
from tests.support.sweep_repository import PARAMS, SWEEP, commit_repository, git, write_files

ROOT = Path(__file__).parents[3]


@pytest.fixture
def repository(empty_folder: Path) -> Path:
    """Params, a profile and two templates; no git."""
    write_files()
    return empty_folder


def sweep_of(text: str) -> Sweep:
    Path("sweeps/steps.yaml").write_text(text, encoding="utf-8")
    return read_sweep("steps")


def test_axes_and_arms_combine_and_each_param_goes_into_its_file(repository: Path) -> None:
    sweep = sweep_of(
        "question: q\ncontrol: b_topic_probability-0.25_low\nseeds: [1, 2]\nset: {train.steps: 5}\n"
        "arms: {a: {set: {prompts.extract_chars: 1}}, b: {}}\n"
        "axes: {prompts.topic_probability: [0.25, 1], train.rates.web: {low: 1, high: 2}}\n"
    )
    assert len(sweep.arms) == 8 and next(iter(sweep.arms)) == "b_topic_probability-0.25_low"
    assert sweep.arms["a_topic_probability-1_high"].params == {
        "profiles/small.yaml": {"train.steps": 5, "prompts.extract_chars": 1},
        "params.yaml": {"train.seeds": [1, 2], "prompts.topic_probability": 1, "train.rates.web": 2},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("control: a\nseeds: [1]\narms: {a: {}}", r"sweeps/steps\.yaml\.question is missing"),
        ("question: q\ncontrol: z\nseeds: [1]\narms: {a: {}}", "control 'z' is no arm; there are: a"),
        ("question: q\ncontrol: a\nseeds: []\narms: {a: {}}", r"steps\.yaml\.seeds"),
        ("question: q\ncontrol: a\nseeds: [1]", "name `arms`, `axes`, or both"),
        ("question: q\ncontrol: a\nseeds: [1]\nset: {train.seeds: [3]}\narms: {a: {}}", "is what `seeds` sets"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {a: {}, b: {}}", "a and b are the same arm"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {a: {set: {train.stesp: 1}}}", "did you mean train.steps"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {a: {set: {profile: big}}}", "set `profile` in params.yaml"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {a: {replace: {nope.txt: other.txt}}}", "nope.txt is no file"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {a: {replace: {template.txt: /etc/hosts}}}", "/hosts is no file"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {'a b': {}}", "'a b' cannot be an arm's name"),
        ("question: q\ncontrol: a\nseeds: [1]\naxes: {prompts: [{a: 1}]}", "cannot be an arm's name.*labels"),
        ("question: q\ncontrol: a\nseeds: [1]\narms: {a: {}, off: {}}", "put an arm or label of that name in quotes"),
        ("question: q\ncontrol: a\nseeds: [1]\naxes: {train.steps: {on: 1, off: 2}}", "on, off, yes and no"),
        ("question: q\ncontrol: a\nseeds: [1]\nfoo: 1\narms: {a: {}}", "foo is not a parameter"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_named(repository: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(text)


def test_a_param_is_set_and_the_comments_stay(repository: Path) -> None:
    set_params(Path("params.yaml"), {"prompts.topic_probability": 0.5, "train.rates.web": 2, "train.seeds": [1, 2]})
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert "topic_probability: 0.5}  # how often" in text and "web: 2" in text and "# a comment" in text


def test_an_arm_waits_for_what_an_earlier_one_does_for_it(repository: Path) -> None:
    def stage(name: str, *params: str, after: tuple[str, ...] = (), deps: tuple[str, ...] = ()) -> Stage:
        small = frozenset(("profiles/small.yaml", name) for name in params)
        return Stage(name, small, frozenset(deps), frozenset(after))

    stages = [
        stage("sources"),
        stage("prompts", "prompts", after=("sources",), deps=("template.txt",)),
        stage("train", "train", after=("prompts",)),
    ]
    sweep = read_sweep("steps")
    waiting = waits(stages, sweep.arms)
    assert waiting == {
        "base": {},
        "more": {"base": {"sources", "prompts"}},
        "unlucky": {"base": {"sources", "prompts"}},
        "wording": {"base": {"sources"}},
    }
    own = {one.arm: one.own for one in outlooks(sweep, stages)}
    assert own["more"] == ["train"] and own["wording"] == ["prompts", "train"]
    arms = (
        "arms:\n  unset: {set: {train.steps: null}}\n"
        "  many: {set: {train.steps: 3, prompts.extract_chars: 1, prompts.topic_probability: 1}}\n"
    )
    changes = {one.arm: one.changes for one in outlooks(sweep_of(SWEEP.replace("arms:\n", arms)), stages)}
    assert changes["unset"] == "train.steps=null" and changes["many"] == "train.steps=3, ... (3)"
    with pytest.raises(ConfigError, match=r"takes 8, its budget\.trainings is 4"):
        check_budget(sweep_of(SWEEP + "budget: {trainings: 4}\n"), 8, None, None)
    with pytest.raises(ConfigError, match="no forecast"):
        check_budget(sweep_of(SWEEP + "budget: {gpu_hours: 4}\n"), 8, None, None)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_repeats_no_finished_stage(repository: Path) -> None:
    """Four arms, two at once; one fails. Each stage runs once for the arms that share it."""
    notes, gate = repository.parent / "notes", repository.parent / "gate"
    for path in (notes, gate):
        path.unlink(missing_ok=True)
    variables = commit_repository(repository, notes)
    Path("params.yaml").write_text(PARAMS.replace("0.25", "0.75"), encoding="utf-8")  # not committed, and counts
    assert [stage.name for stage in stages_of(repository)] == ["sources", "prompts", "train"]
    command = [sys.executable, "-m", "cosmopedia.cli", "sweep", "run", "steps", "-j", "2"]
    first = subprocess.Popen(command, env=variables, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not notes.exists() or notes.read_text().split().count("train") < 2:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    gate.touch()
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 1 and "3 of 4 arms are done" in output, output
    assert "unlucky: failed" in output and "13 steps bring bad luck; take another number" in output
    ran = Counter(notes.read_text().split())
    assert ran["sources"] == 1 and ran["prompts"] == 2  # the second for the other wording
    assert 4 + 1 <= ran["train"] <= 4 + 2  # those that were killed began anew
    names = {line.rpartition("/")[2] for line in git(repository, "for-each-ref", "refs/exps").splitlines()}
    assert {"steps-base", "steps-more", "steps-wording"} <= names and "steps-unlucky" not in names
    state = json.loads(Path(".store/sweeps/steps/wording.json").read_text())
    assert state["state"] == "done"
    assert git(repository, "show", f"{state['commit']}:template.txt") == "two"
    assert "0.75" in git(repository, "show", f"{state['commit']}:params.yaml")
    assert git(repository, "status", "--short").split() == ["M", "params.yaml"]
    again = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert again.stdout.count("done already") == 3 and Counter(notes.read_text().split())["train"] == ran["train"] + 1


def test_only_a_noise_floor_of_the_arms_scale_says_what_the_seeds_can_see(repository: Path) -> None:
    def spread(kind: str) -> Spread:
        return Spread(
            kind=kind, name="all", measure=HELD_OUT, mean=3, sd=0.05, sd_low=0, sd_high=1, item_noise=0, items="x"
        )

    floor = Noise(name="small", source="a", seeds=[1, 2, 3], parameters=100, tokens=1000, spreads=[spread("held-out")])
    write_noise(floor)
    sweep = read_sweep("steps")
    assert power_sentences(sweep, [(100, 1000), (100, 1050)])[0].startswith("small: held-out all,")
    assert power_sentences(sweep, [(100, 1000), (100, 500)]) == [
        "what 2 seeds can see is not known: no noise floor of metrics/noise/ is for 100 parameters, 1,000 tokens and"
        " 100 parameters, 500 tokens; `cosmo calibrate` measures one, docs/ablations.md"
    ]


@pytest.mark.slow
def test_the_settings_of_every_arm_of_this_repository_are_right(empty_folder: Path) -> None:
    """And a corpus without the web's rows, from which topics are made, is refused before a stage works."""
    for name in ("compute", "curation", "data", "dvc.yaml", "prompts", "stages", "sweeps"):
        Path(name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    shutil.copytree(ROOT / "profiles", "profiles")
    assert list(problems()) == []
    own = {path: path.read_text(encoding="utf-8") for path in (Path("params.yaml"), profile_path())}
    for file in sorted(Path("sweeps").glob("*.yaml")):
        sweep = read_sweep(file.stem)
        for name, arm in sweep.arms.items():
            for path, values in arm.params.items():
                if own_values := {key: value for key, value in values.items() if key != "train.seeds"}:
                    set_params(Path(path), own_values)
            found = list(problems())
            for path, text in own.items():
                path.write_text(text, encoding="utf-8")
            assert found == [], f"{file}, {name}"
    set_params(profile_path(), {"sources.web.dataset": None})
    assert [sentence[:28] for sentence in problems()] == ["sources.web.dataset is null,"]


def test_an_arm_is_planned_with_the_stages_that_it_runs_itself(repository: Path) -> None:
    after = {"sources": frozenset[str](), "prompts": frozenset({"sources"}), "train": frozenset({"prompts"})}
    assert pending(["train"], after) == [{"stage": "train", "why": "", "after": []}]
    assert [one["after"] for one in pending(["prompts", "train"], after)] == [[], ["prompts"]]
    for name in ("data/prompts", "data/samples", "models/generator", "arm/data/samples"):
        Path(name).mkdir(parents=True)
    link_results(Path("arm"))
    link_results(Path("arm"))  # a second plan finds the links
    assert Path("arm/data/prompts").resolve() == Path("data/prompts").resolve()
    assert Path("arm/models/generator").is_symlink() and not Path("arm/data/samples").is_symlink()

"""`cosmo compare` and `cosmo calibrate`: what they say of equal and of planted arms, of single seeds, of revisions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from cosmopedia.cli import calibrate, compare
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.evaluation.comparison import compare as compare_arms
from cosmopedia.evaluation.readings import read
from tests.support.answers import write_arm
from tests.support.command_line import cosmo

PANELS = {"early": ["arc_easy", "mmlu", "piqa"]}
SCALE = {"parameters": 3_443_136, "tokens": 409_600, "backend": "nanotron"}


@pytest.fixture
def checkout(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cosmopedia.cli.checkout._started", empty_folder)
    (empty_folder / "profiles").mkdir()
    (empty_folder / "profiles/smoke.yaml").write_text("evaluate: {}\n")
    settings = {"profile": "smoke", "evaluate": {"panels": PANELS}}
    (empty_folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return empty_folder


def verdicts(*words: object) -> dict[tuple[str, str, str], str]:
    """The verdicts by kind, name and measure of a comparison of two arms."""
    rows = json.loads(cosmo(compare.app, *words, "--json"))["rows"]
    return {(row["kind"], row["name"], row["measure"]): row["verdict"] for row in rows}


def with_scale(folder: Path) -> Path:
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics/train.json").write_text(json.dumps(SCALE))
    return folder


def test_a_planted_difference_is_found_and_has_a_direction(checkout: Path) -> None:
    write_arm(checkout / "base", 3, noise=0.1)
    write_arm(checkout / "good", 3, noise=0.1, shift=3, draw=1)
    words = verdicts("base", "good")
    for place in (("panel", "early", "bpb"), ("held-out", "all sets", "held_out_bpb"), ("panel", "early", "prob")):
        assert words[place] == "better"
    assert verdicts("good", "base")["panel", "early", "bpb"] == "worse"  # fewer bits are better
    text = cosmo(compare.app, "base", "good")
    assert "good: held-out bits per byte, all sets: better" in text


def test_equal_arms_are_not_distinguishable_and_it_says_what_would_have_been_seen(checkout: Path) -> None:
    write_arm(checkout / "base", 3)
    write_arm(checkout / "same", 3, draw=1)
    page = json.loads(cosmo(compare.app, "base", "same", "--json"))
    assert {row["verdict"] for row in page["rows"] if row["kind"] != "task"} == {"not distinguishable"}
    row = next(row for row in page["rows"] if (row["name"], row["measure"]) == ("early", "bpb"))
    assert row["low"] < 0 < row["high"] and row["seen"] > 0 and row["seeds_for_half"] > 3
    assert row["bootstrap"][0] < row["difference"] < row["bootstrap"][1]
    text = cosmo(compare.app, "base", "same")
    assert f"{row['seeds_for_half']} seeds per arm would see half of it" in text


def test_one_seed_is_never_called_better(checkout: Path) -> None:
    write_arm(checkout / "base", 1)
    write_arm(checkout / "good", 1, shift=20, draw=1)
    assert set(verdicts("base", "good").values()) == {"one seed: not known"}
    text = cosmo(compare.app, "base", "good")
    assert "nothing can be concluded about training noise" in text
    assert "better" not in text and "worse" not in text


def test_a_noise_floor_of_the_scale_decides_for_one_seed_and_is_named(checkout: Path) -> None:
    with_scale(write_arm(checkout / "base", 1))
    with_scale(write_arm(checkout / "good", 1, shift=20, draw=1))
    cosmo(calibrate.app, with_scale(write_arm(checkout / "many", 6, draw=2)), "--name", "tiny")
    assert verdicts("base", "good")["panel", "early", "bpb"] == "better"
    assert "pooled with the floor tiny" in cosmo(compare.app, "base", "good")
    larger = {"parameters": 9 * SCALE["parameters"], "tokens": SCALE["tokens"]}
    for arm in ("base", "good"):
        (checkout / arm / "metrics/train.json").write_text(json.dumps(larger))
    assert set(verdicts("base", "good").values()) == {"one seed: not known"}
    with pytest.raises(ConfigError, match=r"tiny.json is for 3443136 parameters.*calibrate at that scale"):
        cosmo(compare.app, "base", "good", "--noise", "tiny")


def test_a_noise_floor_of_other_items_is_not_used(checkout: Path) -> None:
    for name, items in (("base", 60), ("good", 60), ("many", 90)):
        with_scale(write_arm(checkout / name, 6 if name == "many" else 1, items=items, held_out=False))
    cosmo(calibrate.app, "many", "--name", "tiny")
    assert set(verdicts("base", "good").values()) == {"one seed: not known"}


def test_the_noise_file_and_the_power_that_follows_from_it(checkout: Path) -> None:
    with_scale(write_arm(checkout / "many", 5))
    assert "metrics/noise/rehearsal.json, commit it" in cosmo(calibrate.app, "many", "--name", "rehearsal")
    noise = json.loads((checkout / "metrics/noise/rehearsal.json").read_text())
    assert (noise["parameters"], noise["tokens"], noise["seeds"]) == (3_443_136, 409_600, [1, 2, 3, 4, 5])
    spread = next(one for one in noise["spreads"] if (one["name"], one["measure"]) == ("early", "acc"))
    assert spread["sd_low"] < spread["sd"] < spread["sd_high"]
    options = ("--metric", "acc", "--difference", "0.5", "--json")
    powers = json.loads(cosmo(calibrate.app, "rehearsal", *options))["power"]
    power = next(one for one in powers if one["name"] == "early")
    assert power["wanted"] == 0.005 and power["needed"] > 3  # 0.5 points
    line = f"acc: 3 seeds see {power['seen'] * 100:.2f} points; for 0.50 you need {power['needed']}"
    assert line in cosmo(calibrate.app, "rehearsal", "--power", *options[:4])
    with pytest.raises(DataError, match="has one training seed; a noise floor takes two or more"):
        cosmo(calibrate.app, write_arm(checkout / "one", 1))


def test_other_items_are_refused_with_both_counts_and_an_example(checkout: Path) -> None:
    write_arm(checkout / "base", 2)
    write_arm(checkout / "fewer", 2, items=57)
    with pytest.raises(DataError, match=r"base has 60 items and fewer 57.*arc_easy/000057 is only in base"):
        cosmo(compare.app, "base", "fewer")


def test_several_arms_share_the_level(checkout: Path) -> None:
    for number, name in enumerate("abc"):
        write_arm(checkout / name, 3, draw=number)
    rows = json.loads(cosmo(compare.app, "a", "b", "c", "--json"))["rows"]
    both = [row for row in rows if (row["name"], row["measure"]) == ("early", "bpb")]
    low, high = sorted(both, key=lambda row: row["p"])
    assert low["p_holm"] == pytest.approx(min(1, 2 * low["p"])) and high["p_holm"] >= high["p"]
    alone = json.loads(cosmo(compare.app, "a", "b", "--json"))["rows"]
    one = next(row for row in alone if (row["name"], row["measure"]) == ("early", "bpb"))
    assert one["seen"] < next(row for row in both if row["arm"] == "b")["seen"]


@pytest.mark.slow
def test_markdown_and_the_forest_plot_are_the_same_twice(checkout: Path) -> None:
    write_arm(checkout / "base", 3)
    write_arm(checkout / "same", 3, draw=1)
    texts = []
    for name in ("one.svg", "two.svg"):
        text = cosmo(compare.app, "base", "same", "--markdown", "--plot", name)
        texts.append((text, (checkout / name).read_bytes()))
    assert texts[0] == texts[1]
    assert texts[0][0].startswith("## same compared with base") and "| held-out all sets |" in texts[0][0]
    assert ElementTree.fromstring(texts[0][1]).tag.endswith("svg")


def test_what_an_arm_cost_is_shown(checkout: Path) -> None:
    for name in ("base", "same"):
        with_scale(write_arm(checkout / name, 2))
    (checkout / "same/.store/runs").mkdir(parents=True)
    (checkout / "same/.store/runs/generate.json").write_text('{"actual": {"gpu_hours": 1.25}}')
    (checkout / ".store/train").mkdir(parents=True)
    (checkout / ".store/train/rates.json").write_text(json.dumps({"nanotron 3443136 x4": 1024.0}))
    base, same = json.loads(cosmo(compare.app, "base", "same", "--json"))["arms"]
    assert base["training_hours"] == pytest.approx(2 * 409_600 / 1024 / 3600 * 4)  # two seeds on four GPUs
    assert base["training_flops"] == 6 * SCALE["parameters"] * SCALE["tokens"] * 2
    assert (base["generation_gpu_hours"], same["generation_gpu_hours"]) == (None, 1.25)


def test_a_name_that_is_nothing_is_refused(checkout: Path) -> None:
    write_arm(checkout / "base", 1)
    with pytest.raises(ConfigError, match="'other' is no folder, git revision or DVC experiment"):
        cosmo(compare.app, "base", "other")
    with pytest.raises(ConfigError, match="two or more different arms"):
        cosmo(compare.app, "base", "base")
    with pytest.raises(ConfigError, match="--metric f1 is not known"):
        cosmo(compare.app, "base", "base", "--metric", "f1")


@pytest.mark.slow
def test_revisions_and_experiments_are_read_from_dvcs_cache(checkout: Path) -> None:
    """Nothing is checked out; what the cache lacks is named with the command that brings it."""
    dvc = [sys.executable, "-m", "dvc"]
    person = ["-c", "user.name=t", "-c", "user.email=t@t"]

    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    def commit(name: str, **arm: float) -> None:
        shutil.rmtree("made", ignore_errors=True)
        write_arm(Path("made"), 3, noise=0.1, held_out=True, **arm)  # type: ignore[arg-type]
        Path("params.yaml").write_text(
            yaml.safe_dump({"profile": "smoke", "evaluate": {"panels": PANELS}, "at": name})
        )
        run(*dvc, "repro", "-q")
        run("git", "add", "-A")
        run("git", *person, "commit", "-q", "-m", name)
        run("git", "tag", name)

    run("git", "init", "-q", "-b", "main")
    run(*dvc, "init", "-q")
    stage = {"cmd": "cp -r made/data/evaluate data/", "deps": ["params.yaml"], "outs": ["data/evaluate"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": stage}}))
    Path(".gitignore").write_text("/made\n")
    Path("data").mkdir()
    commit("base")
    commit("good", shift=3, draw=1)
    head = subprocess.run(["git", "rev-parse", "good"], capture_output=True, text=True, check=True).stdout.strip()
    run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/brave-name", head)  # where DVC keeps experiments
    assert verdicts("HEAD~1", "brave-name")["panel", "early", "bpb"] == "better"
    shutil.rmtree(".dvc/cache")
    with pytest.raises(DataError, match=r"base: data/evaluate is not in DVC's cache; `git checkout \w+ -- dvc.lock"):
        cosmo(compare.app, "base", "good")


def test_a_baseline_of_the_same_items_is_named_for_scale_and_one_of_others_is_not(checkout: Path) -> None:
    for arm in ("base", "other"):
        write_arm(checkout / arm, 2)
    for name, items in (("known", 60), ("small", 30)):
        answers = write_arm(checkout / name, 1, items=items) / "data/evaluate"
        (checkout / "data/baselines").mkdir(parents=True, exist_ok=True)
        for kind in ("", "heldout-"):
            shutil.move(answers / f"{kind}seed-1.parquet", checkout / f"data/baselines/{kind}{name}.parquet")
    page = json.loads(cosmo(compare.app, "base", "other", "--json"))
    scale, others = page["notes"][-2:]
    assert others == "small (data/baselines) answered other items, and cannot be put next to these arms"
    assert scale.startswith("for scale, known: all sets ")
    names = {
        "known": read("known", *({0: [Path(f"data/baselines/{kind}known.parquet")]} for kind in ("", "heldout-")))
    }
    row = next(
        row for row in compare_arms(names | {"same": names["known"]}, PANELS) if row.scope.measure == "acc_norm"
    )
    assert f", early {100 * row.estimate.baseline:.2f} points (acc_norm)" in scale

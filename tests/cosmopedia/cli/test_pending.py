"""`cosmo plan` for pending changes: what it forecasts is what the run then costs."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from cosmopedia.cli import pending
from cosmopedia.cli.pending import COUNTED, ESTIMATED, Pending, Plan, StageCost, make_plan
from cosmopedia.cli.plan import print_plan
from cosmopedia.core.errors import ClusterError
from cosmopedia.execution import sending
from stages.generate import __main__ as generate
from tests.support.fake_tgi import FakeTgi
from tests.support.prompt_rows import write_model, write_prompts, write_settings

GENERATE = Pending("generate", "changed: generate.seed")
PRICE, SLOTS, DELAY = 2.5, 4, 0.1
TOKENS = 10  # of each text that the fake server writes


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sending, "_mlflow", lambda *_: nullcontext())
    monkeypatch.setattr(pending, "earlier_completions", tuple)
    write_model(empty_folder)
    return empty_folder


def settings(folder: Path, url: str) -> None:
    """One server of two GPUs that writes as fast as the compute file says."""
    serving = {"gpus": 2, "concurrency": SLOTS, "tokens_per_second": SLOTS * TOKENS / DELAY}
    write_settings(folder, [url], **{f"serving.{name}": value for name, value in serving.items()})
    path = folder / "compute/local.yaml"
    path.write_text(f"{path.read_text()}price_per_gpu_hour: {PRICE}\n")


def spent(folder: Path) -> dict:
    return json.loads((folder / ".store/runs/generate.json").read_text())["spent"]


@pytest.mark.slow
def test_a_plan_says_what_the_run_then_costs(folder: Path) -> None:
    with FakeTgi(delay=DELAY, slots=SLOTS) as server:
        settings(folder, server.url)
        write_prompts(folder, {"web-blogpost": 40})
        generate.main()
        write_prompts(folder, {"wikihow-wikihow": 24})
        (plan,) = make_plan([GENERATE]).stages
        generate.main()
    cost = spent(folder)
    assert (plan.prompts_new, plan.prompts_cached, plan.known) == (24, 40, COUNTED)
    assert cost["completions"] == plan.prompts_new
    assert cost["prompt_tokens"] == plan.prompt_tokens
    assert cost["tokens"] == plan.completion_tokens == 24 * TOKENS
    assert plan.gpu_hours == pytest.approx(24 * DELAY / SLOTS / 3600 * 2, rel=0.5)
    assert cost["gpu_hours"] == pytest.approx(plan.gpu_hours, rel=1)
    assert plan.money == pytest.approx(plan.gpu_hours * PRICE)
    assert cost["money"] == pytest.approx(cost["gpu_hours"] * PRICE)


@pytest.mark.slow
def test_what_was_spent_is_the_sum_over_attempts_of_the_same_requests(folder: Path) -> None:
    with FakeTgi(lambda prompt, n: 422 if broken and re.search("[13579]\\.", prompt) else "ok") as server:
        settings(folder, server.url)
        write_prompts(folder, {"web-blogpost": 60})
        broken = True
        with pytest.raises(ClusterError):
            generate.main()
        first = json.loads(next((folder / ".store/runs/spent").iterdir()).read_text())
        broken = False
        generate.main()
        total = spent(folder)
        assert total["attempts"] == 2 and 0 < first["completions"] < total["completions"] == 60
        assert total["tokens"] == 60 * TOKENS and total["gpu_hours"] > first["gpu_hours"]
        generate.main()
        assert spent(folder) == total  # nothing was sent
        write_prompts(folder, {"wikihow-wikihow": 5})
        generate.main()
        assert spent(folder)["completions"] == 5  # of another set of requests


def test_estimates_are_marked_and_missing_prices_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(folder, "http://127.0.0.1:9")
    write_prompts(folder, {"web-blogpost": 30})
    changed = [
        Pending("topics", "changed: topics.min_score"),
        Pending("generate", "after topics", frozenset({"topics"})),
    ]
    topics, generated = make_plan(changed).stages
    assert topics == StageCost("topics", "changed: topics.min_score")
    assert generated.known == ESTIMATED and generated.prompts_new == 30 and generated.prompts_cached == 0
    assert generated.basis.startswith("at most")  # no completion has shown how long they are
    print_plan(Plan((topics, replace(generated, money=None)), None, ("generate: topics may change them",)))
    printed = capsys.readouterr().out
    assert "~30" in printed and "note: generate: topics may change them" in printed and "no price" in printed


@pytest.mark.slow
def test_a_change_makes_everything_after_it_pending_and_nothing_else(empty_folder: Path) -> None:
    from dvc.repo import Repo

    Repo.init(no_scm=True).close()
    for name in ("one", "other"):
        (empty_folder / name).write_text(name)
    stages = {
        "last": {"cmd": "cp b c", "deps": ["b"], "outs": ["c"]},
        "first": {"cmd": "cp one a", "deps": ["one"], "outs": ["a"]},
        "next": {"cmd": "cp a b", "deps": ["a"], "outs": ["b"]},
        "apart": {"cmd": "cp other d", "deps": ["other"], "outs": ["d"]},
    }
    (empty_folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    with Repo() as repo:
        repo.reproduce()
    assert pending.pending_stages() == []
    (empty_folder / "one").write_text("edited")
    assert pending.pending_stages() == [
        Pending("first", "changed: one"),
        Pending("next", "after first", frozenset({"first"})),
        Pending("last", "after next", frozenset({"first", "next"})),
    ]

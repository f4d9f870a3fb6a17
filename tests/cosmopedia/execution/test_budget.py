"""What a run costs: forecast before the first request, limited by the budget, compared with the result."""

import json
import re
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cosmopedia.cli.store import app as store_app
from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.execution import sending
from cosmopedia.execution.budget import Budget, forecast, read_rate, refuse, spent, write_rate
from cosmopedia.execution.status import status_files
from cosmopedia.generation.complete import PromptRequests, StageRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Sampling
from cosmopedia.store.store import CompletionStore
from stages.generate import __main__ as generate
from stages.label import cosmo_requests
from tests.support.command_line import cosmo
from tests.support.fake_tgi import FakeTgi
from tests.support.prompt_rows import MODEL, write_model, write_prompts, write_settings

NAMING = Sampling(temperature=1, top_p=1, top_k=None, repetition_penalty=None, max_new_tokens=8)


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sending, "_mlflow", lambda *_: nullcontext())
    write_model(empty_folder)
    write_prompts(empty_folder, {"web-blogpost": 60, "wikihow-wikihow": 40})
    return empty_folder


def serving(folder: Path, **changes: object):
    from cosmopedia.execution.compute import load_compute

    write_settings(folder, ["http://127.0.0.1:9"], **{f"serving.{name}": value for name, value in changes.items()})
    return load_compute().serving


def test_a_forecast_multiplies_what_is_missing_by_the_measured_length_and_rate(folder: Path) -> None:
    machines = serving(folder, gpus=2)
    first = forecast(80_000, 1_200_000, None, 500, "m", machines)
    assert first.sentence() == "1.2M cached, 80k to generate, at most 40M tokens, no rate is known yet"
    write_rate("m", 1000, 825_000, 1000.0, 2, utilisation=0.97)
    then = forecast(80_000, 1_200_000, None, 2500, "m", machines)
    assert then.tokens == 66_000_000 and then.gpu_hours == pytest.approx(66e6 / 825 / 3600 * 2)
    assert then.sentence() == (
        "1.2M cached, 80k to generate, 66M tokens, about 44.4 GPU hours at the rate measured (825 tokens/s)"
    )
    own = forecast(80_000, 1_200_000, 400.0, 2500, "m", machines)  # this run's own completions are the better estimate
    assert own.tokens == 32_000_000
    assert forecast(100, 0, None, 16, "m", machines).tokens == 1600  # answers end there, however long texts are
    assert forecast(10, 0, None, 500, "another model", machines).instance_hours is None


def test_a_run_that_did_not_fill_the_servers_says_so_and_never_replaces_one_that_did(folder: Path) -> None:
    machines = serving(folder, gpus=1, tokens_per_second=2000.0)
    write_rate("m", 100, 50_000, 100.0, 1, utilisation=0.2)
    assert "compute file" in forecast(1000, 0, None, 500, "m", machines).basis  # 500 tokens/s were not a full server
    write_rate("m", 100, 150_000, 100.0, 1, utilisation=0.9)
    assert "1,500 tokens/s" in forecast(1000, 0, None, 500, "m", machines).basis
    write_rate("m", 100, 10_000, 100.0, 1, utilisation=0.2)
    write_rate("m", 3, 10_000, 1.0, 1, utilisation=1.0)  # too few to mean anything
    rate = read_rate("m")
    assert rate is not None and rate.tokens_per_second == 1500


def test_short_answers_leave_the_rate_of_texts_alone(folder: Path) -> None:
    model = GenerationModel.read()
    with FakeTgi() as server, CompletionStore() as store:
        write_settings(folder, [server.url])
        for seed, texts in ((1, False), (2, True)):
            requests = PromptRequests([(str(n), f"prompt {n}") for n in range(30)], model, seed, samples=1)
            complete("label", requests, model, NAMING, store, sending.Send(texts=texts))
            assert (read_rate(model.identity) is not None) == texts


def test_a_bill_above_the_budget_is_refused(folder: Path) -> None:
    machines = serving(folder, gpus=1)
    dear = forecast(1_000_000, 0, 800.0, 2500, "m", machines)
    with pytest.raises(ConfigError, match="no rate is known to forecast with"):
        refuse(dear, Budget(max_gpu_hours=10, max_tokens=None))
    with pytest.raises(ConfigError, match=r"800,000,000 tokens, more than generate\.max_tokens = 1,000"):
        refuse(dear, Budget(max_gpu_hours=None, max_tokens=1000))
    write_rate("m", 1000, 800_000, 400.0, 1, utilisation=0.97)
    dear = forecast(1_000_000, 0, 800.0, 2500, "m", machines)
    with pytest.raises(ConfigError, match=r"about 111\.1 GPU hours, more than generate\.max_gpu_hours = 10"):
        refuse(dear, Budget(max_gpu_hours=10, max_tokens=None))
    refuse(dear, Budget(max_gpu_hours=112, max_tokens=None))
    assert spent(Budget(max_gpu_hours=1, max_tokens=None), 3601.0, 0) is not None
    assert spent(Budget(max_gpu_hours=1, max_tokens=100), 3599.0, 100) is None


@pytest.mark.slow
def test_generate_sends_nothing_above_the_budget_and_stops_when_it_is_spent(folder: Path) -> None:
    with FakeTgi(delay=0.05) as server:
        write_settings(folder, [server.url], **{"generate.max_tokens": 1000})
        with pytest.raises(ConfigError, match=r"4,800 tokens, more than generate\.max_tokens = 1,000"):
            generate.main()
        assert not server.asked
        write_settings(
            folder,
            [server.url],
            **{"generate.max_gpu_hours": 0.25 / 3600, "serving.gpus": 1, "serving.tokens_per_second": 1e6},
        )
        with pytest.raises(ConfigError, match=r"this run's budget is spent: .* GPU hours are spent"):
            generate.main()
        assert 0 < len(server.answered) < 100
        answered = len(server.answered)
        write_settings(folder, [server.url])
        assert f"{100 - answered} sent, {answered} from the store" in generate.main()


@pytest.mark.slow
def test_a_budget_in_money_ends_a_run_before_it_is_exceeded_and_counts_earlier_attempts(folder: Path) -> None:
    price = {"prompt": 0, "completion": 1e6}  # one per token that is written
    with FakeTgi(api="openai") as server:
        hosted: Any = [{"url": server.url, "api": "openai", "price": price}]
        write_settings(folder, hosted, **{"generate.max_money": 600})
        with pytest.raises(ConfigError, match=r"4,800\.00 at 0 and 1e\+06 per million tokens .* about 4,800 in money"):
            generate.main()
        assert not server.asked
        identity = GenerationModel.read().identity
        write_rate(identity, 1000, 3000, 1.0, 0, utilisation=1.0)  # texts of 3 tokens: too hopeful a forecast
        with pytest.raises(ConfigError, match=r"generate\.max_money is 600, .* raise it to go on"):
            generate.main()
        run = json.loads(next((folder / ".store/runs/spent").glob("generate-*.json")).read_text())
        with CompletionStore() as store:
            assert store.contents().completions == len(server.answered) > 0, "nothing that was paid for is lost"
            assert run["money"] == store.contents().tokens
        assert 600 - 48 < run["money"] <= 600
        with pytest.raises(ConfigError, match=r"of it spent by earlier attempts, more than generate\.max_money = 600"):
            generate.main()
        paid = len(server.answered)
        write_settings(folder, hosted)
        assert f"{100 - paid} sent, {paid} from the store" in generate.main()
        assert max(server.asked.values()) == 1, "nothing is paid for twice"


@pytest.mark.slow
def test_forecast_and_actual_are_metrics_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTgi(delay=0.02) as server:
        write_settings(folder, [server.url], **{"serving.gpus": 4})
        assert cosmo(store_app, "forecast").startswith("0 cached, 100 to generate, at most 4,800 tokens, no rate")
        generate.main()
        run = json.loads((folder / ".store/runs/generate.json").read_text())
        assert run["forecast"]["requests"] == run["actual"]["requests"] == run["sent"] == 100
        assert run["actual"]["gpu_hours"] == pytest.approx(4 * run["actual"]["instance_hours"], rel=1e-4)
        assert run["tokens_per_second"] > 0 and set(run["latency_seconds"]) == {"p50", "p90", "p99"}
        lines = (folder / ".store/runs/generate.throughput.csv").read_text().splitlines()
        assert lines[0].startswith("seconds,tokens_per_second,") and len(lines) >= 2
        assert cosmo(store_app, "forecast").startswith("100 cached, 0 to generate")
        write_prompts(folder, {"openstax-textbook": 50})
        said = cosmo(store_app, "forecast")
        assert re.match(r"100 cached, 50 to generate, \d+ tokens, about .* GPU minutes at the rate measured", said), (
            said
        )


def test_what_nothing_refers_to_is_named_and_then_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*words: str) -> str:
        return cosmo(store_app, *words)

    nothing = StageRequests("label", [], GenerationModel.read(), NAMING)  # no clusters to label here
    monkeypatch.setattr(cosmo_requests, "stage_requests", lambda: nothing)
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        generate.main()
    write_prompts(folder, {"web-blogpost": 25})  # of sixty
    assert command("unused").startswith("0 of 100 completions")  # data/generate still has them
    kept = folder / "elsewhere.parquet"
    (folder / "data/generate/web-blogpost.parquet").rename(kept)
    assert command("unused", str(kept)).startswith("0 of 100 completions")
    assert command("unused").startswith("35 of 100 completions")
    assert command("unused", "--remove") == "35 completions removed, 65 kept"
    assert command("forecast").startswith("65 cached, 0 to generate")
    assert json.loads(command("forecast", "--json"))["cached"] == 65
    assert json.loads(command("unused", "--json")) == {"unused": 0, "completions": 65}
    assert json.loads(command("show", "--json"))["completions"] == 65


@pytest.mark.slow
def test_the_status_file_shows_a_run_while_it_goes_on(folder: Path) -> None:
    seen: list[dict] = []

    def look() -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end and not any(s["completed"] and s["state"] == "running" for s in seen):
            seen.extend(json.loads(path.read_text()) for path in status_files())
            time.sleep(0.05)

    with FakeTgi(delay=0.2, slots=8) as server:
        write_settings(folder, [server.url])
        thread = threading.Thread(target=look)
        thread.start()
        generate.main()
        thread.join()
    running = next(s for s in seen if s["completed"] and s["state"] == "running")
    assert (running["stage"], running["to_send"], running["requests"]) == ("generate", 100, 100)
    (endpoint,) = running["endpoints"]
    assert endpoint["url"] == server.url and endpoint["state"] == "in use" and endpoint["running"] == 8
    assert 0 < running["utilisation"] <= 1 and running["eta_seconds"] > 0 and running["latency_seconds"]["p50"] >= 0.2
    (last,) = [json.loads(path.read_text()) for path in status_files()]
    assert (last["state"], last["completed"]) == ("finished", 100)


def test_a_run_that_ends_in_an_error_says_so_in_its_status(folder: Path) -> None:
    with FakeTgi(lambda prompt, n: 422) as server:
        write_settings(folder, [server.url])
        with pytest.raises(ClusterError, match="requests failed"):
            generate.main()
    (last,) = [json.loads(path.read_text()) for path in status_files()]
    assert last["state"] == "stopped" and last["failed_by_reason"]["validation"] >= 20


@pytest.mark.slow
def test_mlflow_holds_the_throughput_over_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    for name in ("COSMO_STORE", "COSMO_COMPUTE", "DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cosmopedia.execution.status.RECORD_SECONDS", 0.5)
    with FakeTgi(delay=0.3, slots=8) as server:
        write_settings(folder, [server.url])
        generate.main()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cosmopedia").experiment_id])  # type: ignore[union-attr]
    assert run.info.status == "FINISHED" and run.data.tags["model"] == MODEL
    points = client.get_metric_history(run.info.run_id, "tokens_per_second")
    assert len(points) >= 3 and max(point.value for point in points) > 0
    assert run.data.metrics["completed"] == 100 and "utilisation" in run.data.metrics


@pytest.mark.slow
def test_endpoints_added_to_the_compute_file_join_a_run_that_goes_on(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 300})
    with FakeTgi(delay=0.1) as first, FakeTgi(delay=0.01) as second:
        write_settings(folder, [first.url], **{"serving.concurrency": 4})
        threading.Timer(0.7, write_settings, (folder, [first.url, second.url]), {"serving.concurrency": 4}).start()
        assert "340 sent" in generate.main()
        assert len(second.answered) > 150

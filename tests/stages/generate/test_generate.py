"""generate: each prompt is paid for once, whatever happens, and every row says where it came from."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.lineage import hash_files
from cosmopedia.execution import sending
from cosmopedia.generation.model import GenerationModel
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.contracts import DOCUMENT, FAILED, THOUGHT
from cosmopedia.tables.parquet import read_table
from stages.generate import __main__ as generate
from tests.support.fake_tgi import FakeTgi, text_of
from tests.support.prompt_rows import MODEL, ROOT, prompt_row, write_model, write_prompts, write_settings
from tests.support.stage_folders import files_of, on_scratch

CELLS = {"khanacademy-textbook": 0, "web-blogpost": 6, "wikihow-wikihow": 4}
OUT = Path("data/generate")


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sending, "_mlflow", lambda *_: nullcontext())  # it has a test of its own
    write_model(empty_folder)
    write_prompts(empty_folder, CELLS)
    return empty_folder


def documents() -> list[dict]:
    return [row for path in sorted(OUT.glob("*.parquet")) for row in read_table(path, DOCUMENT).to_pylist()]


def failed() -> list[dict]:
    return read_table(OUT / "failed/failed.parquet", FAILED).to_pylist()


def test_every_prompt_becomes_a_document_with_its_history(folder: Path) -> None:
    with FakeTgi(lambda prompt, n: "length" if "web fact 2." in prompt else "ok") as server:
        write_settings(folder, [server.url])
        assert generate.main().startswith("10 completions in 2 cells, ")
    assert sorted(path.name for path in OUT.glob("*.parquet")) == [f"{cell}.parquet" for cell in CELLS]
    rows = documents()
    assert len(rows) == 10 and failed() == []
    for row in rows:
        rendered = f"[user] {row['prompt']} [assistant]"  # the server adds <s> itself, so it is not sent twice
        assert row["text"] == text_of(rendered, row["sampling_seed"])
        assert row["completion_id"] == f"{row['prompt_id']}-0" and row["prompt_tokens"] == 1 + len(rendered.split())
        assert (row["model"], row["model_revision"], row["engine"]) == (MODEL, "r1", "fake/3.0.0")
        assert json.loads(row["sampling"])["max_new_tokens"] == 48
    assert len({row["sampling_seed"] for row in rows}) == 10
    metrics = json.loads(Path("metrics/generate.json").read_text())
    assert (metrics["requests"], metrics["completed"], metrics["failed"]) == (10, 10, 0)
    assert metrics["finish_reasons"] == {"eos_token": 9, "length": 1}
    assert metrics["tokens"] == sum(row["text_token_length"] for row in rows)
    assert {name: group["completions"] for name, group in metrics["by_source"].items()} == {"web": 6, "wikihow": 4}


def test_a_second_run_sends_nothing_and_needs_no_server(folder: Path) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        generate.main()
    first = hash_files(sorted(OUT.glob("*.parquet")))
    assert "0 sent, 10 from the store" in generate.main()
    assert hash_files(sorted(OUT.glob("*.parquet"))) == first


def test_a_folder_on_another_disk_holds_this_run_alone(folder: Path) -> None:
    scratch = on_scratch(OUT)
    (scratch / "web-old.parquet").unlink()  # a parquet file would be imported
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        assert generate.main().startswith("10 completions in 2 cells, ")
    assert OUT.is_symlink() and len(documents()) == 10
    assert files_of(scratch) == ["failed/failed.parquet", *(f"{cell}.parquet" for cell in CELLS)]


@pytest.mark.slow
def test_nothing_is_sent_where_a_person_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        monkeypatch.setenv("COSMO_SEND", "never")
        with pytest.raises(ConfigError, match=r"10 of 10 completions for generate are in no store or cache"):
            generate.main()
        monkeypatch.setenv("COSMO_SEND", "later")
        with pytest.raises(ConfigError, match="set it to never"):
            generate.main()
        assert not server.asked
        monkeypatch.delenv("COSMO_SEND")
        generate.main()
        monkeypatch.setenv("COSMO_SEND", "never")
        assert "0 sent, 10 from the store" in generate.main()


@pytest.mark.slow
def test_only_prompts_whose_text_changed_are_sent(folder: Path) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        generate.main()
        before = {row["prompt_id"]: row for row in documents()}
        changed = prompt_row("web", "blogpost", 3, "Write something else about the web.")
        rows = [prompt_row("web", "blogpost", n) for n in range(7) if n not in (3, 5)]
        write_prompts(folder, {"web-blogpost": [*rows, changed]})
        server.asked.clear()
        summary = generate.main()
        assert "2 sent, 8 from the store" in summary
        assert set(server.asked) == {
            "[user] Write something else about the web. [assistant]",
            "[user] Write about web fact 6. [assistant]",
        }
    for row in documents():
        if row["prompt_id"] in before and row["prompt_id"] != changed["prompt_id"]:
            assert row == before[row["prompt_id"]]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_order_of_completion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = set()
    for number, delays in enumerate(([0.0, 0.05], [0.05, 0.0])):
        monkeypatch.setenv("COSMO_STORE", str(folder / f"store{number}"))
        with FakeTgi(lambda prompt, n, d=delays: d[len(prompt) % 2]) as server:
            write_settings(folder, [server.url])
            generate.main()
        hashes.add(hash_files([*OUT.glob("*.parquet"), Path("metrics/generate.json")]))
    assert len(hashes) == 1


@pytest.mark.slow
def test_failures_are_rows_with_a_reason_and_are_asked_again(folder: Path) -> None:
    actions = {"web fact 1.": 422, "web fact 2.": "empty", "wikihow fact 0.": 500}

    def script(prompt: str, n: int) -> object:
        return next((action for words, action in actions.items() if words in prompt), "ok")

    with FakeTgi(script) as server:
        write_settings(folder, [server.url], **{"serving.max_failed_share": 0.5})
        assert "10 sent, 0 from the store, 3 failed" in generate.main()
        assert Counter(row["reason"] for row in failed()) == {"validation": 1, "empty": 1, "server_error": 1}
        assert len(documents()) == 7
        metrics = json.loads(Path("metrics/generate.json").read_text())
        assert metrics["failed_by_reason"] == {"empty": 1, "server_error": 1, "validation": 1}
        actions.clear()
        assert "3 sent, 7 from the store, 0 failed" in generate.main()
        assert len(documents()) == 10


def test_a_prompt_too_long_for_the_model_is_never_sent(folder: Path) -> None:
    long = prompt_row("web", "blogpost", 0, "word " * 240)
    write_prompts(folder, {"web-blogpost": [long, prompt_row("web", "blogpost", 1, "word " * 230)]})
    with FakeTgi() as server:
        write_settings(
            folder,
            [server.url],
            **{"serving.max_failed_share": 0.5, "generate.sampling.max_new_tokens": 160},
        )
        generate.main()
        assert len(server.answered) == 5
    (row,) = failed()
    assert (row["reason"], row["attempts"], row["prompt_id"]) == ("too_long", 0, long["prompt_id"])
    assert row["detail"].startswith("243 prompt tokens + 160 new > 400")


def test_several_samples_of_a_prompt_are_different_and_in_order(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 2, "wikihow-wikihow": 0})
    with FakeTgi() as server:
        write_settings(folder, [server.url], **{"generate.samples_per_prompt": 12})
        generate.main()
    rows = documents()
    assert len(rows) == 24 and len({row["text"] for row in rows}) == 24
    assert sorted(row["sample_index"] for row in rows[:12]) == list(range(12))


@pytest.mark.slow
def test_a_clone_without_the_store_takes_pulled_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        generate.main()
    first = hash_files(sorted(OUT.glob("*.parquet")))
    monkeypatch.setenv("COSMO_STORE", str(folder / "empty"))
    assert "0 sent, 10 from the store" in generate.main()
    assert hash_files(sorted(OUT.glob("*.parquet"))) == first


def thoughts() -> list[dict]:
    paths = sorted(OUT.glob("thoughts/*.parquet"))
    return [row for path in paths for row in read_table(path, THOUGHT).to_pylist()]


def think(prompt: str, n: int) -> object:
    if "wikihow" in prompt:
        return "ok"
    text = "<think>First the sea, then the moon.</think>\n\nThe moon pulls the sea."
    return {"text": text.partition("sea,")[0] if "web fact 2." in prompt else text}


def test_a_thought_is_kept_apart_from_its_document_and_a_thought_that_was_cut_is_a_failure(folder: Path) -> None:
    with FakeTgi(think) as server:
        write_settings(folder, [server.url], **{"serving.max_failed_share": 0.5})
        assert "9 completions in 2 cells" in generate.main()
        assert server.asked["[user] Write about web fact 2. [assistant]"] == 1
    web = [row for row in documents() if row["source"] == "web"]
    assert [row["text"] for row in web] == ["The moon pulls the sea."] * 5
    assert [row["text_token_length"] for row in web] == [5 + 1] * 5  # and the end of text
    first = "First the sea, then the moon."
    assert [(row["thought"], row["thought_tokens"]) for row in thoughts()] == [(first, 11 - 6)] * 5
    assert [row["completion_id"] for row in thoughts()] == [row["completion_id"] for row in web]
    assert [path.name for path in OUT.glob("thoughts/*")] == ["web-blogpost.parquet"]
    (failure,) = failed()
    assert failure["reason"] == "truncated_thought" and "raise max_new_tokens" in failure["detail"]
    metrics = json.loads(Path("metrics/generate.json").read_text())
    assert (metrics["thoughts"], metrics["thought_tokens"], metrics["failed"]) == (
        5,
        25,
        1,
    )


@pytest.mark.slow
def test_a_clone_without_the_store_takes_thoughts_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashes() -> list[str]:
        return [hash_files([path]) for path in sorted(OUT.rglob("*.parquet")) if path.parent.name != "failed"]

    with FakeTgi(think) as server:
        write_settings(folder, [server.url], **{"serving.max_failed_share": 0.5})
        generate.main()
        first = hashes()
        monkeypatch.setenv("COSMO_STORE", str(folder / "empty"))
        assert "1 sent, 9 from the store" in generate.main()
    assert hashes() == first and len(thoughts()) == 5


def test_documents_of_a_model_that_does_not_think_are_alone(folder: Path) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        generate.main()
    assert not (OUT / "thoughts").exists() and "thoughts" not in Path("metrics/generate.json").read_text()


def test_nothing_is_sent_that_could_not_be_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        (folder / "store").mkdir()
        (folder / "store/completions").write_text("a file where the folder should be")
        monkeypatch.setenv("COSMO_STORE", str(folder / "store"))
        with pytest.raises(ClusterError, match="the completion store cannot write to"):
            generate.main()
        assert not server.asked


def test_a_server_of_another_model_is_refused(folder: Path) -> None:
    with FakeTgi(model_id="other/model") as server:
        write_settings(folder, [server.url])
        with pytest.raises(ClusterError, match="serves other/model"):
            generate.main()
        assert not server.answered


@pytest.mark.slow
def test_an_endpoint_that_is_not_there_is_named(folder: Path) -> None:
    write_settings(folder, ["http://127.0.0.1:9"], **{"serving.startup_timeout_s": 0.3})
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:9/health did not become healthy"):
        generate.main()


DRIVER = """
import sys
from contextlib import nullcontext
from cosmopedia.execution import sending, servers
servers.CPU_SERVER = (sys.executable, sys.argv[1])
sending._mlflow = lambda *_: nullcontext()  # it has a test of its own
from cosmopedia.execution.stage_process import run_stage
from stages.generate.__main__ import main
run_stage("generate", main)
"""


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """generate as a process, with servers of its own (the fake ones)."""
    command = [sys.executable, "-c", DRIVER, str(ROOT / "tests/support/fake_tgi.py")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True)


def servers_of(folder: Path) -> list[int]:
    """Processes whose command line names a registration file of this folder's store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/.store/logs".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_9_loses_little_repeats_nothing_and_leaves_no_server(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 150, "wikihow-wikihow": 50})
    write_settings(folder, [])
    log = folder / "log"
    driver = start(folder, FAKE_TGI_LOG=str(log), FAKE_TGI_DELAY="0.1")
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 60)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: not servers_of(folder), 5)
    sent_before = Counter(log.read_text().splitlines())
    store = CompletionStore(folder / ".store/completions")
    kept = store.contents().completions
    assert 0 < kept <= sum(sent_before.values())
    assert sum(sent_before.values()) - kept <= 8 * 6 + 8  # half a second of eight slots, and what was in flight
    log.unlink()
    driver = start(folder, FAKE_TGI_LOG=str(log))
    out, err = driver.communicate()
    assert driver.returncode == 0, err
    assert f"{200 - kept} sent, {kept} from the store, 0 failed" in out
    assert len(log.read_text().splitlines()) == 200 - kept
    rows = documents()
    assert len(rows) == 200
    for row in rows:
        assert row["text"] == text_of(f"[user] {row['prompt']} [assistant]", row["sampling_seed"])
    assert not servers_of(folder) and not list((folder / ".store/logs").glob(f"generate-{driver.pid}-*"))


@pytest.mark.slow
def test_sigterm_keeps_what_is_done_and_ends_the_servers(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 300})
    write_settings(folder, [], **{"serving.instances": 2})
    log = folder / "log"
    driver = start(folder, FAKE_TGI_LOG=str(log), FAKE_TGI_DELAY="0.2")
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 20)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate()
    assert driver.returncode == 130 and "generate: interrupted; run it again to go on" in err
    assert CompletionStore(folder / ".store/completions").contents().completions == len(log.read_text().splitlines())
    assert not servers_of(folder)


@pytest.mark.slow
def test_a_server_that_dies_at_the_start_shows_the_end_of_its_log(folder: Path) -> None:
    write_settings(folder, [])
    driver = start(folder, FAKE_TGI_DIES="1")
    _, err = driver.communicate()
    assert driver.returncode == ClusterError.status
    assert "the server ended with status 1" in err and "cannot load the weights: the fake was told to die" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_started_again_and_then_no_more(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 150, "wikihow-wikihow": 50})
    log = folder / "asked.jsonl"
    for restarts, status in ((2, 0), (0, ClusterError.status)):
        write_settings(folder, [], **{"serving.restarts": restarts, "serving.request_timeout_s": 20})
        for place in (".store", "data/generate"):
            shutil.rmtree(folder / place, ignore_errors=True)
        log.unlink(missing_ok=True)
        driver = start(folder, FAKE_TGI_LOG=str(log), FAKE_TGI_DELAY="0.1")
        wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 20)
        for server in servers_of(folder):
            os.kill(server, signal.SIGKILL)
        out, err = driver.communicate()
        assert driver.returncode == status and "the server ended by signal SIGKILL" in err
        assert status or ("it is started again" in err and "200 sent" in out)
        assert not servers_of(folder)


@pytest.mark.slow
def test_the_key_covers_model_quantisation_and_sampling(folder: Path) -> None:
    with FakeTgi() as server:
        write_settings(folder, [server.url])
        generate.main()
        for change in ({"revision": "r2"}, {"quantisation": "awq"}):
            path = Path("models/generator/generator.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
            assert "10 sent, 0 from the store" in generate.main()
        write_settings(folder, [server.url], **{"generate.sampling.temperature": 0.5})
        assert "10 sent, 0 from the store" in generate.main()
        write_settings(folder, [server.url], **{"generate.seed": 99})
        assert "10 sent, 0 from the store" in generate.main()


def test_rendering_uses_the_models_chat_template_once(folder: Path) -> None:
    model = GenerationModel.read()
    assert model.render("Hello") == "[user] Hello [assistant]"
    assert model.count_tokens([model.render("Hello")]) == [4]

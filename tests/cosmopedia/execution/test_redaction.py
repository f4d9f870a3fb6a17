"""Secrets in text: found by name and by form, taken out of every message, log and traceback."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmopedia.execution.redaction import redact, remember, secret_in

ROOT = Path(__file__).parents[2]
HEX = "9f8e7d6c5b4a39281706f5e4d3c2b1a0"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MLflow at http://me:s3cret@host:5000/x does not answer", "MLflow at http://[redacted]@host:5000/x does not"),
        ("http://me:p/ss@host or sql://me:p@ss@db/y", "http://[redacted]@host or sql://[redacted]@db/y"),
        ("https://user@host/", "https://[redacted]@host/"),
        ("http://host:8080/users/a@b is an address", "http://host:8080/users/a@b is an address"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: [redacted]"),
        (f"invalid token {HEX}", "invalid token [redacted]"),
        ("hf_abcdefghijklmnopqrst is wrong", "[redacted] is wrong"),
        ("github_pat_11ABCDEFG0123456789_x", "[redacted]"),
        ("key AKIAIOSFODNN7EXAMPLE", "key [redacted]"),
        ('Args { api_key: Some("ab12cd34") }', 'Args { api_key: Some("[redacted]") }'),
        ('{"password": "hunter2"}', '{"password": "[redacted]"}'),
        ("?password=hunter2&page=2", "?password=[redacted]&page=2"),
        ("export DB_PASSWORD='open'", "export DB_PASSWORD='[redacted]'"),
        ("serves org/model at 0123456789abcdef0123456789abcdef01234567", "serves org/model at 0123456789abcdef"),
        (
            "--max-total-tokens 4096, eos_token=</s>, pip install hf_transfer",
            "--max-total-tokens 4096, eos_token=</s>",
        ),
        ("the password: is it right?", "the password: is it right?"),
    ],
)
def test_secrets_go_and_the_rest_stays(text: str, shown: str) -> None:
    assert redact(text).startswith(shown)


def test_what_this_process_knows_to_be_secret_goes_wherever_it_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    remember("the-key-of-a-fleet")
    assert redact("you sent 'correct horse' to the-key-of-a-fleet") == "you sent '[redacted]' to [redacted]"


@pytest.mark.parametrize(
    "text",
    [
        f"export MY_KEY={HEX}",
        "export HF_TOKEN='abc'",
        "--api-key=abc",
        "huggingface-cli login --token abcdef",
        "curl -H 'Authorization: Basic dXNlcjpwYXNzd29yZA=='",
        "--export=ALL,DB_PASSWORD=x",
        "docker://me:secret@registry/image",
        "sk-proj-0123456789abcdef",
        "https://host/?api_key=abc",
    ],
)
def test_a_secret_is_found_and_not_repeated(text: str) -> None:
    what = secret_in(text)
    assert what and not any(part in what for part in ("abc", HEX, "dXNl", "=x", "secret@", "sk-"))


@pytest.mark.parametrize(
    "text",
    [
        "ulimit -n 65536",
        "module load cuda/12.1 authlib",
        "pip install hf_transfer",
        'export HF_TOKEN="$(cat ~/.token)"',
        "export HF_TOKEN=${MY_TOKEN}",
        "huggingface-cli login --token $HF_TOKEN",
        'test -n "${HF_TOKEN:-}" || exit 2',
        "source /shared/keys/setup.sh",
        "--max-batch-prefill-tokens=16384",
        "--tokenizer-mode=auto",
        "ghcr.io/x/tgi@sha256:" + "0123456789abcdef" * 4,
        "http://node17:8000/a@b",
    ],
)
def test_what_is_no_secret_may_stay(text: str) -> None:
    assert secret_in(text) is None


def test_a_long_answer_of_a_server_takes_no_longer_than_its_length() -> None:
    began = time.process_time()
    for part in ("a-", "token=", "token ", "://", "://a:", "key-", "eyJaaaaaaaaaaa."):
        redact(part * (60_000 // len(part)))
    assert time.process_time() - began < 10


STAGE = """
import logging, os
from cosmopedia.core.errors import ClusterError
from cosmopedia.execution.stage_process import run_stage
def main():
    logging.getLogger("mlflow").warning("API request to %s failed", os.environ["ADDRESS"])
    raise {error}("no answer from " + os.environ["ADDRESS"] + ": " + os.environ["MLFLOW_TRACKING_PASSWORD"])
run_stage("train", main)
"""


@pytest.mark.parametrize("error", ["ClusterError", "RuntimeError", "OSError"])
def test_no_message_log_or_traceback_of_a_stage_shows_a_password(error: str) -> None:
    secrets = {"ADDRESS": "http://me:s3cret@host:5000", "MLFLOW_TRACKING_PASSWORD": "correct horse"}
    code = STAGE.format(error=error)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT), **secrets}, capture_output=True, text=True
    )
    shown = done.stdout + done.stderr
    assert done.returncode and "no answer from http://[redacted]@host:5000: [redacted]" in shown
    assert "API request to http://[redacted]@host:5000 failed" in shown
    assert "s3cret" not in shown and "correct horse" not in shown
    assert ("Traceback" in shown) is (error != "ClusterError")


def test_a_library_that_logs_wrongly_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    from cosmopedia.execution.redaction import guard_output

    guard_output()
    logging.getLogger("x").warning("%d tokens", 3)
    assert caplog.messages == ["3 tokens"]

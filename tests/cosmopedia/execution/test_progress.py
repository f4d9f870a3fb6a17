"""What the progress line says, and when it says how long the rest will take."""

import re
import threading
import time
from pathlib import Path

import pytest

from cosmopedia.execution import status as status_module
from cosmopedia.execution.budget import Forecast
from cosmopedia.execution.client.dispatcher import Dispatcher
from cosmopedia.execution.client.endpoints import Pool
from cosmopedia.execution.client.http import Identity
from cosmopedia.execution.compute import EndpointSpec
from cosmopedia.execution.progress import Progress, remaining_seconds
from cosmopedia.execution.status import StatusWriter
from cosmopedia.generation.answers import AnswerReader
from tests.support.dispatch import SAMPLING, Words, jobs, serving
from tests.support.fake_tgi import FakeTgi


def test_before_the_first_completion_the_line_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMO_STORE", str(tmp_path))
    monkeypatch.setattr(status_module, "TICK_SECONDS", 0.02)
    lines, urls, go = list[str](), list[EndpointSpec](), threading.Event()
    with FakeTgi(lambda prompt, n: 0.4) as server:
        pool = Pool(lambda: urls, serving(), SAMPLING, Identity("fake-1b", "r1", 400))
        reader = AnswerReader(Words(), SAMPLING.max_new_tokens)
        commit = list[object]().extend
        dispatcher = Dispatcher(
            "generate", pool, serving(), reader, commit, expecting=lambda: None if urls else "job 7 is queued"
        )
        progress = Progress("generate", 12, "completions")
        monkeypatch.setattr(progress, "advance", lambda count, **notes: advanced(count))

        def advanced(count: int) -> None:
            progress.done += count
            lines.append(progress.line())
            if len(lines) == 3:
                urls.append(EndpointSpec(url=server.url))
                go.set()

        with StatusWriter("generate", dispatcher, 12, 0, Forecast(12, 0, 240, False, None, 0, ""), progress):
            dispatcher.run(jobs(12))
    assert go.is_set() and re.fullmatch(
        r"generate: 0/12 completions \(0%\), servers are starting \(\d+ s; job 7 is queued\)", lines[0]
    )
    sent = "generate: 0/12 completions (0%), 8 requests sent to 1 server, no completion yet (0 s)"
    assert sent in lines, lines
    first = next(line for line in lines if not line.startswith("generate: 0/"))
    assert "ETA" in first and not any("ETA" in line for line in lines[: lines.index(first)])


def test_the_first_completion_of_a_batch_does_not_stand_for_a_minute_each() -> None:
    assert remaining_seconds(60, 0, 960, 64) is None
    # 64 slots that take a minute: 15 minutes in all; counting the one completion alone, it would be 16 hours.
    assert 10 * 60 < (remaining_seconds(60, 1, 960, 64) or 0) < 30 * 60
    assert remaining_seconds(600, 640, 960, 0) == 300
    assert remaining_seconds(600, 950, 960, 10) == pytest.approx(600 * 5 / 955)
    progress = Progress("generate", 960, "completions")
    progress._start = time.monotonic() - 60
    progress.done, progress.under_way = 1, 64
    assert re.search(r"1/960 completions \(0%\), 0\.0/s, ETA 2\d:", progress.line())

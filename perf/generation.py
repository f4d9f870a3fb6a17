"""What requesting completions costs, and how it copes: utilisation, CPU, memory, unequal servers, faults, kills.

In: nothing (prompts are made up; --prompts FILE takes real ones). Out: a table per section, and one line with all the
key figures. Servers are stubs (perf/stub_server.py), the client is a process of its own that calls `complete()`.
Each section also reads the store back: every request is delivered once or has failed with a reason, or the run ends
with status 1. A missed goal is printed but does not change the status: machines differ.
Run: python -m perf.generation (about 7 minutes on 2 cores), or for one section at a small size
     python -m perf.generation --sections cost --runs 1 --scale 0.2
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import yaml

from cosmopedia.core.files import write_text
from cosmopedia.generation.complete import PromptRequests
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Sampling, completion_key
from cosmopedia.store.segments import read_frames
from cosmopedia.store.store import CompletionStore
from perf.client_process import SAMPLING, SEED, Prompts, Task, make_model, memory_mb
from perf.stub_server import CHARACTERS_PER_TOKEN, MAX_TOKENS, MEAN_TOKENS, MODEL, text_of, tokens_of

ROOT = Path(__file__).parents[1]
HEADROOM = 1.25  # outstanding requests per slot: the next one is already at the server when a slot is freed
PATIENCE = 900.0  # seconds after which a client process counts as hung


class WrongData(Exception):
    """A completion is missing, empty, wrong, or stored twice."""


class Server:
    """A stub in a process of its own; it ends with this process, whatever happens."""

    def __init__(self, **options: object):
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self.slots, self.speed = int(str(options.get("slots", 256))), float(str(options.get("speed", 1000)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perf.stub_server", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def report(self, query: str = "") -> dict[str, Any]:
        """GET /stub/report; {} when the server is dead."""
        if self.process.poll() is not None:
            return {}
        with urllib.request.urlopen(f"{self.url}/stub/report?{query}", timeout=30) as answer:
            return json.load(answer)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()


@dataclass
class Client:
    """A running client process and where it leaves its measurements."""

    process: subprocess.Popen[bytes]
    result: Path
    log: Path

    def measured(self) -> dict[str, Any]:
        """Wait for its end. `WrongData` with the end of its log when it died or gave up."""
        self.process.wait(PATIENCE)
        result = json.loads(self.result.read_text()) if self.result.exists() else {"error": "it died"}
        if result["error"] not in (None, "interrupted"):
            tail = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])
            raise WrongData(f"the client gave up: {result['error']} ({tail[-800:]})")
        return result


@dataclass
class Bench:
    """One benchmark run: its options, its folder, and the line of figures that it ends with."""

    options: argparse.Namespace
    folder: Path
    cores: list[int]
    figures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _made: int = 0
    _cached: dict[str, GenerationModel] = field(default_factory=dict)

    @property
    def model(self) -> GenerationModel:
        """The generation model that every client of this run is given."""
        if "model" not in self._cached:
            self._cached["model"] = GenerationModel.read(make_model(self.folder / "generator", MODEL))
        return self._cached["model"]

    def size(self, count: int) -> int:
        """A default count, scaled by --scale."""
        return max(round(count * self.options.scale), 20)

    def requests(self, count: int) -> int:
        """--requests, or a default count."""
        return self.options.requests or self.size(count)

    def prompts(self, count: int, first: int = 0, characters: int = 1000) -> Prompts:
        """The prompts of a section."""
        return Prompts(count, first, characters, self.options.prompts)

    def place(self, name: str) -> Path:
        """A new folder."""
        self._made += 1
        path = self.folder / f"{self._made:02d}-{name}"
        path.mkdir()
        return path

    def start(
        self,
        place: Path,
        client: str,
        prompts: Prompts,
        servers: list[Server],
        connections: int,
        cpu: int | None = None,
        **serving: object,
    ) -> Client:
        """Start a client; its store is `<place>/store`, which several clients of one place share."""
        self._made += 1
        name = f"{client}-{self._made:02d}"
        compute = place / "compute.yaml"
        write_compute(compute, [server.url for server in servers], concurrency=connections, **serving)
        task = Task(client, prompts, str(self.model.folder), str(place / f"{name}.result"), cpu=cpu)
        task.urls, task.connections = [server.url for server in servers], connections
        task.write(place / f"{name}.task")
        log = place / f"{name}.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COSMO_COMPUTE": str(compute),
            "COSMO_STORE": str(place / "store"),
        }
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "perf.client_process", str(place / f"{name}.task")],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        return Client(process, Path(task.result), log)

    def check(self, place: Path, prompts: Prompts, failures: Iterable[list[str]] = ()) -> dict[str, int]:
        """Read the store back; `WrongData` unless every request has its one text or a failure with a reason."""
        sampling = Sampling(**SAMPLING, max_new_tokens=MAX_TOKENS)
        failed = {key: reason for key, reason in failures}
        count: Counter[str] = Counter()
        with CompletionStore(place / "store/completions") as store:
            for request in PromptRequests(prompts, self.model, SEED, 1):
                prompt = request.prompt  # rendered at each access
                key = completion_key(request, self.model.identity, sampling, prompt)
                completion = store.get(key)
                if completion is None:
                    count["failed" if failed.get(key) else "missing"] += 1
                    continue
                count["delivered"] += 1
                count["empty"] += not completion.text.strip()
                count["wrong"] += completion.text != text_of(prompt, request.seed)
        rows = stored_rows(place)
        count["twice"] = rows - count["delivered"]
        bad = {name: number for name, number in count.items() if number and name not in ("delivered", "failed")}
        if bad or count["delivered"] + count["failed"] != prompts.count:
            raise WrongData(f"of {prompts.count} requests: {dict(count)}, {rows} rows in the store")
        return dict(count)

    def lengths(self, prompts: Prompts, speed: float) -> list[float]:
        """Seconds in a slot of each request, in the order in which they are sent."""
        return [tokens_of(r.prompt, r.seed) / speed for r in PromptRequests(prompts, self.model, SEED, 1)]

    def goal(self, what: str, value: str, met: bool) -> None:
        """Print a goal and whether it was reached."""
        print(f"  goal: {what}: {value} ({'met' if met else 'MISSED'})", flush=True)


def write_compute(path: Path, urls: list[str], **serving: object) -> None:
    """compute/endpoints.yaml with these endpoints; in one step, since a run may be reading it."""
    content = yaml.safe_load((ROOT / "compute/endpoints.yaml").read_text(encoding="utf-8"))
    content["serving"] |= {"endpoints": urls, "startup_timeout_s": 30, **serving}
    write_text(path, yaml.safe_dump(content))


def stored_rows(place: Path) -> int:
    """Completions in a store, repeated ones counted each time."""
    return sum(
        len(frame.keys) // 16 for path in (place / "store/completions").glob("*.seg") for frame in read_frames(path)
    )


def table(head: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Print columns, the first one to the left."""
    texts = [head, *([f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for row in texts:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  " + "  ".join(cells), flush=True)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], step: float = 0.02) -> bool:
    """Poll until the condition holds; False when the process ended before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            raise WrongData(f"nothing happened for {PATIENCE:g} s")
        time.sleep(step)
    return True


def speed_for(rate: float, slots: int) -> float:
    """Tokens/s per slot at which so many requests per second are completed when all slots are busy."""
    return rate * MEAN_TOKENS / slots


def at(series: list[list[float]], column: int, when: float) -> float:
    """A cumulative column of a report's series at a time, between two samples linearly."""
    number = bisect_right(series, when, key=lambda row: row[0])
    if number in (0, len(series)):
        return series[min(number, len(series) - 1)][column]
    before, after = series[number - 1], series[number]
    part = (when - before[0]) / (after[0] - before[0])
    return before[column] + part * (after[column] - before[column])


def utilisation(report: dict[str, Any]) -> tuple[float, float]:
    """(busy share of the slots from the first request to the last answer; the same while all of them had work).

    The second runs from when all slots first were busy to when the last request reached the server.
    """
    slots, series = report["slots"], report["series"]
    total = report["busy_slot_seconds"] / (slots * (report["last_answer"] - report["first_request"]))
    start, end = report["all_busy"], report["last_request"]
    if not start or end <= start:
        return total, float("nan")
    return total, (at(series, 3, end) - at(series, 3, start)) / (slots * (end - start))


# -- the sections


def measure_utilisation(bench: Bench) -> None:
    """Slots busy, ours compared with chunks that have a barrier."""
    rows = []
    for slots in bench.options.slots:
        count = bench.requests(100 * slots)  # a drain is about two mean lengths, so 2% of the run
        few = min(count, 1000 * max(round(5 * bench.options.scale), 3))
        shares = {}
        for client, number in (("ours", count), ("chunked", few)):
            place = bench.place(f"utilisation-{slots}")
            connections = round(slots * HEADROOM)
            with Server(slots=slots, speed=speed_for(bench.options.rate, slots), max_concurrent=4 * slots) as server:
                prompts = bench.prompts(number)
                measured = bench.start(place, client, prompts, [server], connections).measured()
                report = server.report("series")
                lengths = bench.lengths(prompts, server.speed)
            if client == "ours":
                bench.check(place, prompts, measured["failures"])
            elif report["distinct"] != number or measured["new"] != number:
                raise WrongData(f"the chunked client completed {measured['new']} of {number}")
            total, steady = shares[client] = utilisation(report)
            seconds = report["last_answer"] - report["first_request"]
            most = sum(lengths) / (slots * ideal(lengths, [(0.0, float("inf"))] * slots))
            late = 1 - report["work_slot_seconds"] / report["busy_slot_seconds"]
            rows.append(
                [
                    *(f"{slots} {client}", number, seconds, number / seconds, f"{total:.1%}", f"{most:.1%}"),
                    *(f"{steady:.1%}", f"{late:.1%}", measured["cpu"], report["cpu_seconds"]),
                ]
            )
            shutil.rmtree(place)
        ours, chunked = shares["ours"], shares["chunked"]
        bench.goal(f"{slots} slots, whole run", f"{ours[0]:.1%} >= 97%", ours[0] >= 0.97)
        bench.goal(f"{slots} slots, steady", f"{ours[1]:.1%} >= 99%", ours[1] >= 0.99)
        bench.figures.append(
            f"{slots} slots {ours[0]:.1%} busy ({ours[1]:.1%} steady), chunks {chunked[0]:.0%},"
            f" ratio {ours[0] / chunked[0]:.2f}"
        )
    head = ["slots, client", "requests", "s", "req/s", "busy", "ideal", "steady", "stub late", "CPU s", "stub CPU s"]
    table(head, rows)


def measure_cost(bench: Bench) -> None:
    """CPU per request without latency, client and stub on one core each."""
    count = bench.requests(10_000)
    client_core, stub_core = bench.cores[0], bench.cores[1 % len(bench.cores)]
    runs: dict[str, list[tuple[float, float, float, float]]] = {"ours": [], "bare": []}
    for _ in range(bench.options.runs):
        for client, results in runs.items():
            place = bench.place(f"cost-{client}")
            with Server(speed=0, cpu=stub_core) as server:
                prompts = bench.prompts(count)
                measured = bench.start(place, client, prompts, [server], 256, client_core).measured()
                stub = server.report()["cpu_seconds"]
            if client == "ours":
                bench.check(place, prompts, measured["failures"])
            elif measured["new"] != count:
                raise WrongData(f"the bare loop completed {measured['new']} of {count}")
            results.append(
                (measured["cpu"] / count * 1000, count / measured["wall"], measured["peak"], stub / count * 1000)
            )
            shutil.rmtree(place)
    rows, medians = [], {}
    for client, results in runs.items():
        cpu, rate, peak, stub = medians[client] = [statistics.median(column) for column in zip(*results, strict=True)]
        each = " ".join(f"{result[0]:.3f}" for result in results)
        rows.append([client, count, f"{cpu:.3f}", f"{rate:.0f}", f"{peak:.0f}", f"{stub:.3f}", each])
    table(["client", "requests", "CPU s/1,000", "req/s", "peak MB", "stub CPU s/1,000", "each run"], rows)
    cpu, rate = medians["ours"][:2]
    print(f"  ratio to the bare loop: {cpu / medians['bare'][0]:.2f} CPU, {rate / medians['bare'][1]:.2f} requests/s")
    bench.goal("CPU s per thousand requests", f"{cpu:.3f} <= 0.3", cpu <= 0.3)
    bench.goal("requests/s", f"{rate:.0f} >= 2500", rate >= 2500)
    bench.figures.append(f"{cpu:.3f} CPU s/1,000 (bare {medians['bare'][0]:.3f}), {rate:.0f} requests/s on one core")


def measure_memory(bench: Bench) -> None:
    """Resident memory with many prompts to send; stopped by SIGTERM after the first completions."""
    count, stop = bench.size(bench.options.queued), bench.size(5000)
    place = bench.place("memory")
    prompts = bench.prompts(count)
    if bench.options.queued_from == "made":
        prompts = Prompts(count, characters=20)
    elif prompts.file is None:
        prompts = Prompts(count, file=str(write_short_prompts(place / "prompts.parquet", count)))
    with Server(speed=0) as server:
        started = time.monotonic()
        client = bench.start(place, "ours", prompts, [server], 128)
        asked = wait_until(lambda: server.report()["requests"] > 0, client.process, 0.1)
        first, looked_up = time.monotonic() - started, memory_mb(client.process.pid)
        asked = asked and wait_until(lambda: server.report()["answered"] >= stop, client.process)
        then = memory_mb(client.process.pid)
        if client.process.poll() is None:
            client.process.send_signal(signal.SIGTERM)
        measured = client.measured()
        answered = server.report()["answered"]
    if not asked and answered < stop:
        raise WrongData(f"the client ended after {answered} of {stop} completions")
    kept = stored_rows(place)
    if kept != answered:
        raise WrongData(f"SIGTERM lost {answered - kept} of {answered} completions")
    head = [
        "prompts",
        "MB after imports",
        "tokenizer",
        "look-up",
        "its peak",
        f"{stop} answers",
        "peak so far",
        "peak",
    ]
    row = [count, measured["rss_imports"], measured["rss_tokenizer"], *looked_up, *then, measured["peak"]]
    table([*head, "first request after s", "CPU s"], [[*row, first, measured["cpu"] + measured["cpu_before"]]])
    bench.goal(f"peak memory with {count:,} prompts", f"{measured['peak']:.0f} MB <= 150 MB", measured["peak"] <= 150)
    bench.figures.append(f"{measured['peak']:.0f} MB peak with {count:,} prompts")
    shutil.rmtree(place)


def write_short_prompts(path: Path, count: int) -> Path:
    """A parquet file of prompts of about 70 characters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("prompt", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, count, 10_000):
            texts = [text for _, text in Prompts(min(10_000, count - first), first, 20)]
            writer.write_table(pa.table({"prompt": texts}, schema))
    return path


def measure_unequal(bench: Bench) -> None:
    """Four unequal servers: one is killed after a third, a fifth joins after half."""
    sizes, killed, joining = bench.options.unequal, 2, 128
    count = bench.requests(50 * sum(sizes))
    speed = speed_for(bench.options.rate, sum(sizes))
    place, prompts = bench.place("unequal"), bench.prompts(count)
    connections = round(max(sizes) * HEADROOM)

    def server_of(slots: int) -> Server:
        return Server(slots=slots, speed=speed, max_concurrent=round(slots * 1.5))

    with group(server_of, [*sizes, joining]) as servers:
        client = bench.start(place, "ours", prompts, servers[:-1], connections)
        seen: dict[int, dict[str, Any]] = {}

        def answered() -> int:
            for number, server in enumerate(servers):
                seen[number] = server.report() or seen[number]
            return sum(report["answered"] for report in seen.values())

        wait_until(lambda: answered() >= count // 3, client.process, 0.1)
        servers[killed].kill()
        killed_at = time.monotonic()
        wait_until(lambda: answered() >= count // 2, client.process, 0.1)
        urls = [server.url for server in servers]
        write_compute(place / "compute.yaml", urls, concurrency=connections)
        joined_at = time.monotonic()
        measured = client.measured()
        answered()
    counts = bench.check(place, prompts, measured["failures"])
    started = min(report["first_request"] for report in seen.values() if report["first_request"])
    wall = max(report["last_answer"] for report in seen.values()) - started
    lengths, slots, never = bench.lengths(prompts, speed), sum(sizes), float("inf")
    killed_after, joined_after = killed_at - started, joined_at - started
    steps = [(0.0, slots), (killed_after, slots - sizes[killed])]
    without = bound(sum(lengths), steps)
    best = bound(sum(lengths), [*steps, (joined_after, slots - sizes[killed] + joining)])
    steady = [(0.0, never)] * (slots - sizes[killed]) + [(joined_after, never)] * joining
    queue = ideal(lengths, [*steady, *[(0.0, killed_after)] * sizes[killed]])
    lost = seen[killed]["busy_slot_seconds"] - seen[killed]["work_slot_seconds"]
    rows = []
    for number, report in seen.items():
        name = {killed: " killed", len(sizes): " joining"}.get(number, "")
        rows.append([f"{report['slots']}{name}", report["requests"], report["answered"], report["faults"]["overload"]])
    table(["slots", "requests", "answered", "429"], rows)
    table(
        [
            *("requests", "delivered", "failed", "wall s", "bound s", "bound without the fifth", "ideal queue s"),
            *("over bound", "over ideal", "CPU s", "retries"),
        ],
        [
            [
                *(count, counts["delivered"], counts.get("failed", 0), wall, best, without, queue),
                *(f"{wall / best - 1:.1%}", f"{wall / queue - 1:.1%}", measured["cpu"], measured["retries"]),
            ]
        ],
    )
    print(
        f"  killed at {killed_after:.1f} s with {lost:.0f} slot-seconds of work in it; joined at {joined_after:.1f} s"
    )
    bench.goal("wall time over the capacity bound", f"{wall / best - 1:.1%} <= 10%", wall <= 1.1 * best)
    bench.goal("requests that failed", f"{counts.get('failed', 0)} = 0", not counts.get("failed", 0))
    bench.figures.append(f"unequal servers {wall / best - 1:.1%} over the bound ({wall / queue - 1:.1%} over ideal)")
    shutil.rmtree(place)


@contextmanager
def group(make: Callable[[int], Server], sizes: Iterable[int]) -> Iterator[list[Server]]:
    """Several servers that end together."""
    servers: list[Server] = []
    try:
        for slots in sizes:
            servers.append(make(slots))
        yield servers
    finally:
        for server in servers:
            server.__exit__()


def bound(work: float, steps: list[tuple[float, int]]) -> float:
    """The least seconds that slot-seconds of work take; steps are (start, slots), in order of time."""
    for (start, slots), (end, _) in zip(steps, [*steps[1:], (float("inf"), 0)], strict=True):
        if work <= slots * (end - start):
            return start + work / slots
        work -= slots * (end - start)
    raise ValueError("no slots")


def ideal(lengths: Iterable[float], slots: list[tuple[float, float]]) -> float:
    """Seconds that a single queue before all slots would take, without any latency; slots are (from, until).

    Without knowing the lengths beforehand, nobody can do better: unlike `bound` it includes the drain at the end, and
    what a killed server had begun starts over.
    """
    free, again, end = list(slots), [], 0.0
    heapify(free)
    waiting = iter(lengths)
    length = next(waiting, None)
    while length is not None or again:
        start, until = heappop(free)
        if again and (again[0][0] <= start or length is None):
            ready, taken = heappop(again)
            start = max(start, ready)
        else:
            assert length is not None
            taken, length = length, next(waiting, None)
        if start + taken <= until:
            end = max(end, start + taken)
            heappush(free, (start + taken, until))
        else:
            heappush(again, (until, taken))
    return end


def measure_faults(bench: Bench) -> None:
    """Overloads, errors, resets, stalls, and one server of two dying halfway."""
    count, slots = bench.requests(4000), 64
    place, prompts = bench.place("faults"), bench.prompts(count)
    shares = {"p429": 0.10, "p500": 0.03, "preset": 0.03, "pstall": 0.005}

    def server_of(seed: int) -> Server:
        return Server(slots=slots, speed=speed_for(bench.options.rate / 2, slots), fault_seed=seed, **shares)

    with group(server_of, [1, 2]) as servers:
        client = bench.start(place, "ours", prompts, servers, round(slots * HEADROOM), request_timeout_s=3, attempts=3)
        seen: dict[int, dict[str, Any]] = {}

        def answered() -> int:
            for number, server in enumerate(servers):
                seen[number] = server.report() or seen[number]
            return sum(report["answered"] for report in seen.values())

        wait_until(lambda: answered() >= count // 2, client.process, 0.05)
        servers[1].kill()
        measured = client.measured()
        answered()
    counts = bench.check(place, prompts, measured["failures"])
    drawn = Counter(measured["retries"])
    faults = sum((Counter(report["faults"]) for report in seen.values()), Counter())
    wall = max(r["last_answer"] for r in seen.values()) - min(r["first_request"] for r in seen.values())
    again = sum(report["duplicates"] for report in seen.values())
    reasons = dict(Counter(reason for _, reason in measured["failures"]))
    table(
        ["requests", "delivered", "failed", "empty", "twice", "answered again", "wall s", "CPU s"],
        [[count, counts["delivered"], counts.get("failed", 0), 0, 0, again, wall, measured["cpu"]]],
    )
    print(f"  faults at the servers: {dict(faults)}\n  retries: {dict(drawn)}\n  failures: {reasons}")
    bench.figures.append(
        f"faults: {counts['delivered']} delivered + {counts.get('failed', 0)} failed of {count}, 0 empty, 0 twice"
    )
    shutil.rmtree(place)


def measure_kills(bench: Bench) -> None:
    """SIGKILL at random moments, then two processes on one store."""
    count, slots, rate = bench.requests(8000), 64, bench.options.rate * 0.8
    place, prompts = bench.place("kills"), bench.prompts(count)
    draw, rows, before, kept = random.Random(0), [], 0, 0
    worst = -1.0
    with Server(slots=slots, speed=speed_for(rate, slots)) as server:
        for number in range(bench.options.kills):
            asked = server.report()["requests"]
            client = bench.start(place, "ours", prompts, [server], round(slots * HEADROOM))
            wait_until(lambda asked=asked: server.report()["requests"] > asked, client.process)
            time.sleep(draw.uniform(0.05, 2.5))
            if client.process.poll() is not None:
                client.measured()
                break
            client.process.kill()
            killed_at = time.monotonic()
            client.process.wait()
            # The server drops requests in flight when it sees that their connections are closed.
            time.sleep(0.2)
            report, rows_now = server.report("series"), stored_rows(place)
            lost = report["answered"] - rows_now - before
            second = report["answered"] - at(report["series"], 4, killed_at - 1)
            rows.append([number + 1, rows_now - kept, lost, f"{second:.0f}"])
            worst = max(worst, lost - second)
            before, kept = before + lost, rows_now
        measured = bench.start(place, "ours", prompts, [server], round(slots * HEADROOM)).measured()
        report = server.report()
    counts = bench.check(place, prompts, measured["failures"])
    table(["kill", "newly stored", "lost", "answered since a second before"], rows)
    again = report["duplicates"]
    print(f"  last run: {measured['cached']} from the store, {measured['new']} new; answered again {again}")
    if report["answered"] - before != counts["delivered"]:
        raise WrongData(f"{report['answered']} answered, {before} lost by kills, {counts['delivered']} delivered")
    largest = max((row[2] for row in rows), default=0)
    bench.goal("lost by a kill", f"at most {largest}, one second's worth or less", worst <= 0)
    bench.figures.append(f"{len(rows)} kills lost {before} of {count}, at most {largest} in one")
    shutil.rmtree(place)
    two_processes(bench, count // 2, slots, rate)


def two_processes(bench: Bench, count: int, slots: int, rate: float) -> None:
    """Two clients write to one store at once, half each; a third requests all and has nothing to send."""
    place, half = bench.place("two"), count // 2
    with Server(slots=slots, speed=speed_for(rate, slots)) as server:
        parts = [bench.prompts(half), bench.prompts(count - half, half)]
        clients = [bench.start(place, "ours", part, [server], slots // 2) for part in parts]
        failures = [failure for client in clients for failure in client.measured()["failures"]]
        counts = bench.check(place, bench.prompts(count), failures)
        again = bench.start(place, "ours", bench.prompts(count), [server], slots).measured()
    print(f"  two processes on one store: {counts['delivered']} delivered; a third sent {again['sent']}")
    if again["sent"] != counts.get("failed", 0):
        raise WrongData(f"a run after two others sent {again['sent']} of {count} again")
    shutil.rmtree(place)


LOOK_UP = """
import sys, time
from pathlib import Path
import numpy as np
from perf.client_process import cpu_seconds, memory_mb
from cosmopedia.store.parquet_files import FILE_ROWS
from cosmopedia.store.store import CompletionStore
before, began = memory_mb()[0], time.monotonic()
store = CompletionStore(Path(sys.argv[1]))
opened, rows = time.monotonic() - began, len(store._index)
draw = np.random.default_rng(0)
here = draw.bytes(16 * FILE_ROWS)
def rate(keys, wanted):
    keys, started = [keys[at : at + 16] for at in range(0, len(keys), 16)], cpu_seconds()
    for at in range(0, len(keys), 1024):
        assert store.present(keys[at : at + 1024]) == [wanted] * len(keys[at : at + 1024])
    return len(keys) / (cpu_seconds() - started)
others = np.random.default_rng(999).bytes(16 * FILE_ROWS)
print(rows, opened, rate(here, True), rate(others, False), before, *memory_mb())
"""


def measure_lookup(bench: Bench) -> None:
    """Memory and speed of look-ups in a store of many packed completions (of one letter each)."""
    from cosmopedia.store.parquet_files import FILE_ROWS

    place = bench.place("lookup")
    write_packs(place, max(bench.size(bench.options.keys) // FILE_ROWS, 1))
    disk = sum(path.stat().st_size for path in place.glob("*")) / 1e6
    found = subprocess.run(
        [sys.executable, "-c", LOOK_UP, str(place)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    rows, opened, hits, misses, before, now, peak = map(float, found)
    table(
        ["keys", "MB on disk", "opened in s", "hits/CPU s", "misses/CPU s", "MB before", "after", "peak"],
        [[f"{rows:,.0f}", disk, opened, f"{hits:,.0f}", f"{misses:,.0f}", before, now, peak]],
    )
    bench.goal(f"peak memory with {rows / 1e6:.1f}M keys", f"{peak:.0f} MB <= 500 MB (for 30M)", peak <= 500)
    bench.figures.append(f"{rows / 1e6:.1f}M keys in {peak:.0f} MB, {hits:,.0f} look-ups/CPU s")
    shutil.rmtree(place)


def write_packs(folder: Path, count: int) -> None:
    """Packs of random keys, the first one's drawn from seed 0; not checked row by row, which look-ups do not need."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cosmopedia.store.parquet_files import FILE_ROWS, GROUP_ROWS, SCHEMA

    letters, ones = pa.array(["x"] * FILE_ROWS), pa.array(np.ones(FILE_ROWS, np.int32))
    for number in range(count):
        draw = np.random.default_rng(number)
        keys, checks = (
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(size), FILE_ROWS, [None, pa.py_buffer(draw.bytes(size * FILE_ROWS))]
            )
            for size in (16, 8)
        )
        columns = [keys, letters, letters, ones, ones, letters, checks]
        content = pa.Table.from_arrays(columns, schema=SCHEMA)
        path = folder / f"{number:05d}.parquet"
        pq.write_table(content, path, compression="zstd", row_group_size=GROUP_ROWS, write_page_checksum=True)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "utilisation": measure_utilisation,
    "cost": measure_cost,
    "memory": measure_memory,
    "lookup": measure_lookup,
    "unequal": measure_unequal,
    "faults": measure_faults,
    "kills": measure_kills,
}


def parser() -> argparse.ArgumentParser:
    """The options; without any, everything at its full size."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options.add_argument("--scale", type=float, default=1.0, help="multiplies every section's default count")
    options.add_argument("--requests", type=int, default=0, help="requests per section, instead of its default count")
    options.add_argument("--runs", type=int, default=3, help="of the cost section; the median counts")
    options.add_argument("--slots", type=int, nargs="+", default=[256, 500], help="of the utilisation section")
    options.add_argument("--rate", type=float, default=600.0, help="completions/s that the stubs could give in all")
    options.add_argument("--unequal", type=int, nargs=4, default=[32, 64, 128, 256], help="slots; the third is killed")
    options.add_argument("--kills", type=int, default=10, help="of the kills section")
    options.add_argument("--queued", type=int, default=1_000_000, help="prompts of the memory section")
    options.add_argument("--keys", type=int, default=5_000_000, help="of the lookup section")
    options.add_argument(
        "--queued-from", choices=["parquet", "made"], default="parquet", help="made: without a reader's memory"
    )
    options.add_argument("--prompts", help="parquet or JSON lines with a column `prompt`, instead of made prompts")
    options.add_argument("--folder", type=Path, help="where stores are written (default: the temporary folder)")
    return options


def main() -> int:
    """Run the sections; 1 when data were wrong."""
    options = parser().parse_args()
    if options.prompts:
        options.prompts = str(Path(options.prompts).resolve())
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder, ignore_cleanup_errors=True) as folder:
        bench = Bench(options, Path(folder), cores)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{len(cores)} cores, load {load}; texts of {MEAN_TOKENS * CHARACTERS_PER_TOKEN} characters on average")
        for name in options.sections:
            started = time.monotonic()
            print(f"{name}: {(SECTIONS[name].__doc__ or '').strip()}", flush=True)
            try:
                SECTIONS[name](bench)
            except WrongData as error:
                print(f"  WRONG: {error}", flush=True)
                bench.wrong.append(name)
            print(f"  {time.monotonic() - started:.0f} s", flush=True)
    wrong = f"WRONG: {', '.join(bench.wrong)}" if bench.wrong else "all data right"
    print("; ".join([*bench.figures, wrong]))
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

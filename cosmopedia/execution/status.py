"""What a generation run is doing: a status file, MLflow and a log line while it runs, its figures afterwards.

`<store root>/runs/<stage>.status.json` is replaced every second, for dashboards and people. Nothing in here changes a
result: a thread of its own reads the dispatcher, so that a slow disk or MLflow delays no request.
"""

import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import store_root
from cosmopedia.execution.budget import Forecast
from cosmopedia.execution.client.dispatcher import Dispatcher
from cosmopedia.execution.mlflow_run import Run
from cosmopedia.execution.progress import Progress, remaining_seconds
from cosmopedia.execution.spending import Ledger, Spent

TICK_SECONDS = 1.0
WINDOW_SECONDS = 30.0  # over which the shown rate is taken
RECORD_SECONDS = 10.0  # between two points in MLflow
MAX_POINTS = 2048  # of the series; beyond that, every second one is dropped
PLOT_POINTS = 200


class StatusWriter:
    """Watches one dispatch; a context manager. `series` and `figures()` are what it recorded."""

    def __init__(
        self,
        stage: str,
        dispatcher: Dispatcher,
        total: int,
        cached: int,
        plan: Forecast,
        progress: Progress,
        record: Run | None = None,
        ledger: Ledger | None = None,
    ):
        self.stage, self.dispatcher, self.total, self.cached = stage, dispatcher, total, cached
        self.plan, self.progress, self.record, self.ledger = plan, progress, record, ledger
        self.series: list[dict[str, float]] = []
        self.path = store_root() / "runs" / f"{stage}.status.json"
        self._every, self._since, self._recorded, self._shown = 1, 0, 0.0, 0
        self._recent: deque[tuple[float, int]] = deque()
        self._busy = self._watched = 0.0
        self._sent: float | None = None  # when the first requests were seen on their way
        self._stopped = threading.Event()
        self._began, self._started_at = time.monotonic(), time.time()
        self._last = self._began

    def __enter__(self) -> "StatusWriter":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._tick("finished" if kind is None else "stopped")
        if self.record is not None:
            self._log(self.status("finished", time.monotonic()))
            total = self.total_spent().figures() | {f"forecast_{k}": v for k, v in self.plan.metrics().items()}
            figures = {k: v for k, v in total.items() if isinstance(v, int | float)}
            names = {k: k if k.startswith("forecast_") else f"spent_{k}" for k in figures}
            self.record.metrics({names[k]: v for k, v in figures.items()})

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            self._tick("running")

    def _tick(self, state: str) -> None:
        now = time.monotonic()
        status = self.status(state, now)
        used = status["utilisation"]
        if used is not None and status["tokens"]:
            self._busy += used * (now - self._last)
            self._watched += now - self._last
        self._last = now
        self._since += 1
        if self._since >= self._every or state != "running":
            self._since = 0
            self.series.append(
                {
                    "seconds": round(now - self._began, 1),
                    "tokens": status["tokens"],
                    "utilisation": used or 0.0,
                    "gpus": status["gpus"],
                    "endpoints": len(status["endpoints"]),
                }
            )
            if len(self.series) > MAX_POINTS:
                self.series, self._every = self.series[::2], self._every * 2
        self._write(status)
        if self.ledger is not None:
            self.ledger.write(self.spent(now))
        done = self.dispatcher.done
        self.progress.waiting, self.progress.under_way = self._waiting(status, now), status["in_flight"]
        self.progress.advance(
            done - self._shown,
            **{"tokens/s": f"{status['tokens_per_second']:,.0f}", "cached": self.cached, "failed": status["failed"]},
        )
        self._shown = done
        if self.record is not None and now - self._recorded >= RECORD_SECONDS:
            self._recorded = now
            self._log(status)

    def _waiting(self, status: dict[str, Any], now: float) -> str | None:
        """What the run waits for until it has its first result; None from then on."""
        if self.dispatcher.done:
            return None
        if not status["endpoints"]:
            reason = status["expecting"] or "; ".join(self.dispatcher.pool.waiting_for.values())
            return f"servers are starting ({now - self._began:.0f} s{f'; {reason}' if reason else ''})"
        if not status["in_flight"]:
            return "no request sent yet"
        self._sent = self._sent or now
        count = len(status["endpoints"])
        return (
            f"{status['in_flight']} requests sent to {count} server{'s' if count > 1 else ''}, no completion yet"
            f" ({now - self._sent:.0f} s)"
        )

    def status(self, state: str, now: float) -> dict[str, Any]:
        """Everything that is known, as it is in the status file. Rates are over the last 30 s."""
        dispatcher, pool = self.dispatcher, self.dispatcher.pool
        outcome, gpus = dispatcher.outcome, pool.gpus
        self._recent.append((now, outcome.tokens))
        while len(self._recent) > 2 and now - self._recent[1][0] > WINDOW_SECONDS:
            self._recent.popleft()
        (first, before), (last, tokens) = self._recent[0], self._recent[-1]
        speed = (tokens - before) / (last - first) if last > first else 0.0
        done = outcome.new + len(outcome.failures)
        missing, seconds = self.plan.requests, now - self._began
        left = remaining_seconds(seconds, done, missing, dispatcher.in_flight)
        used = pool.utilisation()
        return {
            "stage": self.stage,
            "state": state,
            "pid": os.getpid(),
            "started": _utc(self._started_at),
            "updated": _utc(time.time()),
            "requests": self.total,
            "from_store": self.cached,
            "to_send": missing,
            "completed": outcome.new,
            "failed": sum(dispatcher.reasons.values()),
            "failed_by_reason": dict(dispatcher.reasons),
            "retries": dict(outcome.retries),
            "tokens": outcome.tokens,
            "tokens_per_second": round(speed, 1),
            "tokens_per_second_gpu": round(speed / gpus, 1) if gpus else None,
            "tokens_per_second_instance": round(speed / max(len(pool.endpoints), 1), 1),
            "utilisation": None if used is None else round(used, 4),
            "queued": dispatcher.queued,
            "in_flight": dispatcher.in_flight,
            "latency_seconds": dispatcher.latencies.quantiles(),
            "gpus": gpus,
            "gpu_hours": round(pool.gpu_seconds(now) / 3600, 4),
            "money": self.spent(now).money,
            "forecast": self.plan.metrics(),
            "eta_seconds": None if left is None else round(left),
            "endpoints": [
                {
                    "url": e.url,
                    "engine": e.connection.engine,
                    "state": e.state(now),
                    "limit": int(e.limit),
                    "outstanding": e.outstanding,
                    "running": e.load.running if e.load else None,
                    "waiting": e.load.waiting if e.load else None,
                    "completions": e.completions,
                    "tokens_per_second": round(e.tokens / max(now - e.since, 1e-9), 1),
                    "last_error": e.last_error,
                }
                for e in list(pool.endpoints)
            ],
            "waiting_for": dict(pool.waiting_for),
            "expecting": dispatcher.expecting(),  # why servers that may still come are not here yet
        }

    def _write(self, status: dict[str, Any]) -> None:
        try:
            write_text(self.path, json.dumps(status, indent=1) + "\n")
        except OSError as error:  # a full disk is reported by the store, which matters more
            print(f"warning: {self.path}: {error.strerror}", file=sys.stderr, flush=True)

    def _log(self, status: dict[str, Any]) -> None:
        assert self.record is not None
        names = ("tokens_per_second", "tokens_per_second_gpu", "tokens_per_second_instance", "utilisation")
        names += ("queued", "in_flight", "completed", "failed", "tokens", "gpu_hours")
        values = {name: status[name] for name in names if status[name] is not None}
        values |= {f"latency_{name}": value for name, value in status["latency_seconds"].items()}
        values |= {f"retries.{name}": count for name, count in status["retries"].items()}
        values["endpoints"] = len(status["endpoints"])
        self.record.metrics(values, step=round(time.monotonic() - self._began))

    @property
    def utilisation(self) -> float:
        """Mean over the time in which tokens arrived."""
        return self._busy / self._watched if self._watched else 0.0

    def spent(self, now: float) -> Spent:
        """What this attempt has cost until now."""
        outcome, pool, price = self.dispatcher.outcome, self.dispatcher.pool, self.plan.price
        hours, gpu_hours = pool.instance_seconds(now) / 3600, pool.gpu_seconds(now) / 3600
        money = gpu_hours * price if price is not None and gpu_hours else None
        if self.plan.token_price is not None:  # a killed run has paid for what is in flight, too
            money = (money or 0.0) + pool.wallet.paid + pool.wallet.reserved
        return Spent(outcome.new, outcome.tokens, outcome.prompt_tokens, hours, gpu_hours, money)

    def total_spent(self) -> Spent:
        """What these requests have cost, earlier attempts included."""
        return self.ledger.total() if self.ledger is not None else self.spent(self._last)

    def figures(self) -> dict[str, Any]:
        """The run in a few numbers: the forecast and what it was."""
        outcome, pool = self.dispatcher.outcome, self.dispatcher.pool
        seconds = max(self._last - self._began, 1e-9)
        instances, gpu_seconds = pool.instance_seconds(self._last), pool.gpu_seconds(self._last)
        return {
            "forecast": self.plan.metrics(),
            "actual": {
                "requests": outcome.new + len(outcome.failures),
                "tokens": outcome.tokens,
                "prompt_tokens": outcome.prompt_tokens,
                "gpu_hours": gpu_seconds / 3600 if gpu_seconds else None,
                "money": self.spent(self._last).money,
                "instance_hours": instances / 3600,
            },
            "spent": self.total_spent().figures(),  # over all attempts
            "seconds": seconds,
            "tokens_per_second": outcome.tokens / seconds,
            "tokens_per_second_instance": outcome.tokens / instances if instances else 0.0,
            "tokens_per_second_gpu": outcome.tokens / gpu_seconds if gpu_seconds else None,
            "utilisation": self.utilisation,
            "latency_seconds": self.dispatcher.latencies.quantiles(),
            "retries": dict(sorted(outcome.retries.items())),
        }

    def throughput(self) -> list[dict[str, float]]:
        """At most 200 points of the run: seconds, tokens/s since the previous point (also per GPU), utilisation."""
        step = max(1, -(-len(self.series) // PLOT_POINTS))
        points, before = [], {"seconds": 0.0, "tokens": 0.0}
        for point in self.series[step - 1 :: step]:
            passed = point["seconds"] - before["seconds"]
            if passed > 0:
                speed = (point["tokens"] - before["tokens"]) / passed
                points.append(
                    {
                        "seconds": point["seconds"],
                        "tokens_per_second": round(speed, 1),
                        "tokens_per_second_per_gpu": round(speed / point["gpus"], 1) if point["gpus"] else 0.0,
                        "utilisation": point["utilisation"],
                        "endpoints": point["endpoints"],
                    }
                )
                before = point
        return points


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def status_files() -> list[Path]:
    """The status files of this store's runs."""
    return sorted((store_root() / "runs").glob("*.status.json"))

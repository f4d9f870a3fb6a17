"""Sends requests to several endpoints at once and hands each outcome on as it comes; nothing is asked for twice.

A slot that is free takes the next request: there is no barrier between chunks, and no more requests are in memory than
the slots and a short queue hold. The least loaded endpoint is asked. 429, 502, 503 and broken connections give the
request back and rest the endpoint; 500 and timeouts spend one of the request's attempts; other refusals and empty
texts are failures with a reason. Completions go to `commit` in batches, at most half a second after they arrive.
"""

import asyncio
import contextlib
import itertools
import random
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import aiohttp

from stages.clusters import Serving
from stages.errors import ClusterError
from stages.progress import Progress
from stages.serving.client import Attempt, GiveBack, Refused, generate, parameters_of, session
from stages.serving.requests import Completion, Failure, Request, Sampling

COMMIT_SECONDS = 0.5  # what kill -9 can lose
COMMIT_ROWS = 256
FEED_ROWS = 64  # requests prepared together
DRAIN_SECONDS = 10.0  # for what is in flight, once a signal asked to stop
MIN_RESULTS = 20  # before the share of failures can stop the stage
JUDGED_ROWS = 100  # a share is taken of at least so many while the run goes on: two failures of 34 are no verdict
RESETS_PER_ATTEMPT = 5  # broken connections that spend an attempt: a prompt that kills servers must end as a failure
REST_SECONDS = (0.2, 5.0)  # an endpoint whose connection broke rests this long, doubling up to the second figure
OVERLOAD_SECONDS = (0.05, 2.0)  # a request that met 429 waits this long, doubling likewise


@dataclass(frozen=True, slots=True)
class Job:
    """A request with its key and its length in tokens."""

    request: Request
    key: str
    prompt_tokens: int


@dataclass
class Endpoint:
    """A server and what this client knows of its load."""

    url: str
    engine: str
    most: int  # requests outstanding at most
    limit: float = 0.0  # of these, as many as it takes without a 429
    outstanding: int = 0
    resting_until: float = 0.0
    rest: float = field(default_factory=lambda: REST_SECONDS[0])
    last_trouble: str = ""

    def __post_init__(self) -> None:
        self.limit = float(self.most)

    def succeeded(self) -> None:
        """Ask for one more at a time, one a round trip."""
        self.rest, self.last_trouble = REST_SECONDS[0], ""
        self.limit = min(self.limit + 1 / self.limit, float(self.most))

    def overloaded(self) -> None:
        """It takes fewer than are outstanding now; 429 comes at once, so this settles at what it does take."""
        self.limit = max(min(self.limit, self.outstanding - 1.0), 1.0)

    def broke(self, now: float) -> None:
        """Rest, once for all the connections that break together."""
        if now >= self.resting_until:
            self.resting_until = now + self.rest
            self.rest = min(self.rest * 2, REST_SECONDS[1])


@dataclass
class Outcome:
    """What a dispatch did. `failures` is what it could not complete."""

    new: int = 0
    tokens: int = 0
    failures: list[Failure] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)  # by reason, also of requests that were completed later


class Dispatcher:
    """One run over a stream of jobs.

    `commit` stores completions durably; it runs in a thread, one call at a time. `lost` is asked now and then and
    returns a sentence when no server is left. `before` counts requests that are done already (from the store) and
    `failed_before` ones that failed before they were sent; both count in the share of failures.
    """

    def __init__(
        self,
        stage: str,
        endpoints: list[Endpoint],
        sampling: Sampling,
        serving: Serving,
        commit: Callable[[list[Completion]], None],
        progress: Progress,
        lost: Callable[[], str | None] = lambda: None,
        before: int = 0,
        failed_before: Counter[str] | None = None,
    ):
        self.stage, self.endpoints, self.serving, self.progress = stage, endpoints, serving, progress
        self.commit, self.lost, self.before = commit, lost, before
        self.reasons: Counter[str] = Counter(failed_before or {})
        self.outcome = Outcome()
        self._parameters = parameters_of(sampling)
        self._uncommitted: list[Completion] = []
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._stop: BaseException | None = None

    def run(self, jobs: Iterable[Job]) -> Outcome:
        """Send every job. Raises `ClusterError` when the run has to stop, `KeyboardInterrupt` after SIGINT or SIGTERM;
        whatever was completed until then has been committed."""
        asyncio.run(self._run(iter(jobs)))
        if self._stop is None:
            self._check_failures(final=True)
        if self._stop is not None:
            raise self._stop
        return self.outcome

    async def _run(self, jobs: Iterator[Job]) -> None:
        loop = asyncio.get_running_loop()
        self._started = self._succeeded = loop.time()
        self._stopped, self._arrived, self._committing = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        slots = sum(endpoint.most for endpoint in self.endpoints)
        queue: asyncio.Queue[Job | None] = asyncio.Queue(maxsize=2 * slots)
        with self._signals(loop):
            async with session(slots) as http:
                feeder = asyncio.create_task(self._feed(jobs, queue, slots))
                workers = [asyncio.create_task(self._work(http, queue)) for _ in range(slots)]
                others = [asyncio.create_task(self._watch()), asyncio.create_task(self._commit_often())]
                stopped = asyncio.create_task(self._stopped.wait())
                everything = asyncio.gather(feeder, *workers)
                try:
                    await asyncio.wait({everything, stopped, *others}, return_when=asyncio.FIRST_COMPLETED)
                    if self._stop is not None:
                        feeder.cancel()
                        await asyncio.wait({feeder})
                        while not queue.empty():
                            queue.get_nowait()
                        for _ in range(slots):
                            queue.put_nowait(None)
                        drain = DRAIN_SECONDS if isinstance(self._stop, KeyboardInterrupt) else 1.0
                        await asyncio.wait(workers, timeout=drain)
                    for task in (everything, *others):
                        if self._stop is None and task.done():
                            task.result()
                finally:
                    for task in (stopped, feeder, *workers, *others):
                        task.cancel()
                    await asyncio.gather(everything, stopped, *others, return_exceptions=True)
                    await self._commit_now()

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """SIGINT and SIGTERM stop the sending; a second one is not waited for."""

        def asked() -> None:
            note = f"{self.stage}: stopping; waiting up to {DRAIN_SECONDS:g} s for what is in flight"
            print(note, file=sys.stderr, flush=True)
            self._end(KeyboardInterrupt())
            remove()

        def remove() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, asked)
        except (ValueError, RuntimeError):  # not the main thread: signals are somebody else's
            yield
            return
        try:
            yield
        finally:
            remove()

    def _end(self, why: BaseException) -> None:
        if self._stop is None:
            self._stop = why
        self._stopped.set()

    async def _feed(self, jobs: Iterator[Job], queue: asyncio.Queue[Job | None], slots: int) -> None:
        """Rendering and tokenising happen in a thread, ahead of the free slot."""
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(jobs, FEED_ROWS))):
            for job in batch:
                await queue.put(job)
        for _ in range(slots):
            await queue.put(None)

    async def _work(self, http: aiohttp.ClientSession, queue: asyncio.Queue[Job | None]) -> None:
        while not self._stopped.is_set() and (job := await queue.get()) is not None:
            result = await self._complete(http, job)
            if result is None:
                return
            if isinstance(result, Completion):
                self._uncommitted.append(result)
                if len(self._uncommitted) >= COMMIT_ROWS:
                    self._arrived.set()
                self.outcome.new += 1
                self.outcome.tokens += result.tokens
            else:
                self.outcome.failures.append(result)
                self.reasons[result.reason] += 1
                self._check_failures()
            self._show()

    async def _complete(self, http: aiohttp.ClientSession, job: Job) -> Completion | Failure | None:
        """The job's result; None when the run was stopped before there was one."""
        loop, attempts, resets, overloads = asyncio.get_running_loop(), 0, 0, 0
        while not self._stopped.is_set() and (endpoint := await self._acquire()) is not None:
            pause = 0.0
            try:
                response = await generate(
                    http, endpoint.url, job.request, self._parameters, self.serving.request_timeout_s
                )
            except Refused as error:
                self._succeeded = loop.time()  # it answers
                return Failure(job.key, error.reason, error.detail, attempts + 1)
            except GiveBack as error:
                trouble: GiveBack | Attempt = error
                if error.overloaded:
                    endpoint.overloaded()
                    pause, overloads = min(OVERLOAD_SECONDS[0] * 2**overloads, OVERLOAD_SECONDS[1]), overloads + 1
                else:
                    endpoint.broke(loop.time())
                    resets += 1
                    attempts += resets % RESETS_PER_ATTEMPT == 0
            except Attempt as error:
                trouble = error
                attempts += 1
            else:
                self._succeeded = loop.time()
                endpoint.succeeded()
                return Completion(
                    key=job.key,
                    text=response.generated_text,
                    finish_reason=response.details.finish_reason.value,
                    tokens=response.details.generated_tokens,
                    prompt_tokens=job.prompt_tokens,
                    engine=endpoint.engine,
                )
            finally:
                self._release(endpoint)
            self.outcome.retries[trouble.reason] += 1
            endpoint.last_trouble = trouble.detail
            if attempts >= self.serving.attempts:
                return Failure(job.key, trouble.reason, trouble.detail, attempts)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        return None

    async def _acquire(self) -> Endpoint | None:
        """A slot at the least loaded endpoint that is not resting; None once the run stops."""
        loop = asyncio.get_running_loop()
        while not self._stopped.is_set():
            now = loop.time()
            free = [e for e in self.endpoints if e.resting_until <= now and e.outstanding < int(e.limit)]
            if free:
                endpoint = min(free, key=lambda e: e.outstanding / e.limit)
                endpoint.outstanding += 1
                return endpoint
            waiter = loop.create_future()
            self._waiters.append(waiter)
            with contextlib.suppress(TimeoutError):  # a rest that ends wakes nobody, so look again
                await asyncio.wait_for(waiter, 0.2)
        return None

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.outstanding -= 1
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _watch(self) -> None:
        """End the run when the servers are gone, or have not completed anything for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.25)
            if sentence := self.lost():
                return self._end(ClusterError(sentence))
            idle = loop.time() - self._succeeded
            busy = any(endpoint.outstanding for endpoint in self.endpoints)
            patience = self.serving.startup_timeout_s + (self.serving.request_timeout_s if busy else 0)
            troubled = [endpoint for endpoint in self.endpoints if endpoint.last_trouble]
            if idle > patience and troubled:
                told = "; ".join(endpoint.last_trouble for endpoint in troubled)
                return self._end(
                    ClusterError(
                        f"no completion for {idle:.0f} s. {told}. Look at the server(s) and run again;"
                        " what was completed is in the store"
                    )
                )

    async def _commit_often(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), COMMIT_SECONDS)
            self._arrived.clear()
            try:
                await asyncio.shield(self._commit_now())
            except ClusterError as error:
                return self._end(error)

    async def _commit_now(self) -> None:
        async with self._committing:
            batch, self._uncommitted = self._uncommitted, []
            if batch:
                await asyncio.to_thread(self.commit, batch)

    def _check_failures(self, final: bool = False) -> None:
        """Stop when more than `max_failed_share` of the requests failed, and say why."""
        failed, new = sum(self.reasons.values()), self.outcome.new
        done = self.before + new + failed
        judged = done if final else max(done, JUDGED_ROWS)
        nothing = final and failed and not self.before and not new
        if nothing or (failed > self.serving.max_failed_share * judged and failed + new >= MIN_RESULTS):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            sample = f"; the last: {self.outcome.failures[-1].detail}" if self.outcome.failures else ""
            self._end(
                ClusterError(
                    f"{failed} of {done} requests failed ({reasons}), more than serving.max_failed_share ="
                    f" {self.serving.max_failed_share:g} allows{sample}. What was completed is in the store"
                )
            )

    def _show(self) -> None:
        seconds = max(asyncio.get_running_loop().time() - self._started, 1e-9)
        self.progress.advance(
            1,
            **{
                "tokens/s": f"{self.outcome.tokens / seconds:,.0f}",
                "cached": self.before,
                "failed": sum(self.reasons.values()),
            },
        )

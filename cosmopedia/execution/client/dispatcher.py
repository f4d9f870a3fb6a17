"""Sends requests to several endpoints at once and hands on each outcome as it arrives; nothing is generated twice.

A free slot takes the next request: there is no barrier between chunks, and memory holds only the requests in flight
and a short queue. 429, 502, 503, broken connections and stalled servers give the request back; 500 and timeouts spend
one of its attempts; other 4xx answers and empty texts are failures with a reason. What is tried again goes to another
endpoint if one is free. Completions go to `commit` in batches, at most half a second after they arrive. `endpoints`
chooses the endpoint.
"""

import asyncio
import contextlib
import itertools
import random
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.execution.client.charges import NOTHING, Charge, Size
from cosmopedia.execution.client.endpoints import Endpoint, Latencies, Pool
from cosmopedia.execution.client.http import (
    EndpointRejected,
    Overloaded,
    Permanent,
    PromptRejected,
    RequestError,
    Requeue,
    Retryable,
    generate,
    judging,
    session,
)
from cosmopedia.execution.compute import Serving
from cosmopedia.generation.answers import Answer, AnswerReader
from cosmopedia.generation.requests import Completion, Failure, PendingRequest, Request

PASSED_OVER = 32  # requests that may wait for another endpoint than the free one before nobody is sent there
COMMIT_SECONDS = 0.5  # at most so much is lost to kill -9
COMMIT_ROWS = 512
COMMITS_BEHIND = 4  # batches that may wait for a slow disk before sending pauses
FEED_ROWS = 64  # requests prepared together
DRAIN_SECONDS = 10.0  # for requests in flight, after a signal
WATCH_SECONDS = 0.25
MIN_RESULTS = 20  # before the share of failures can stop the stage
JUDGED_ROWS = 100  # during the run, a share is of at least so many requests: two failures of 34 prove nothing
RESETS_PER_ATTEMPT = 5  # broken connections that spend an attempt: a prompt that kills servers must become a failure
OVERLOADS_PER_ATTEMPT = 50  # the same for 429: a prompt that a limit never lets through must become a failure
HARMLESS = Request("harmless", "Hello.", 1, 0)  # what an endpoint must take that refuses another prompt
OVERLOAD_SECONDS = (0.05, 2.0)  # pause of a request after 429: the first, doubling up to the second


@dataclass(slots=True, eq=False)
class _Attempted:
    """A request with its tries so far."""

    pending: PendingRequest
    attempts: int = 0
    resets: int = 0
    overloads: int = 0
    avoid: Endpoint | None = None  # where it was last tried in vain
    refused: bool = False  # there: it refuses this prompt, and takes others
    size: Size | None = None  # counted when an endpoint with a price or a limit of tokens needs it


@dataclass
class Outcome:
    """What a dispatch did. `failures` is what it could not complete."""

    new: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    failures: list[Failure] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)  # by reason, including requests that were completed later


class Dispatcher:
    """One run over a stream of requests.

    `commit` stores completions durably; it runs in a thread, one call at a time. `stop` is called regularly and
    returns an error when the run must end (no server is left, the budget is spent); `expecting` returns a sentence
    while a server may still come. `reader` judges answers. `before` is how many requests were done before (from the
    store), and `failed_before` how many failed before they were sent; both count towards the share of
    failures.
    """

    def __init__(
        self,
        stage: str,
        pool: Pool,
        serving: Serving,
        reader: AnswerReader,
        commit: Callable[[list[Completion]], None],
        stop: Callable[[], BaseException | None] = lambda: None,
        expecting: Callable[[], str | None] = lambda: None,
        before: int = 0,
        failed_before: Counter[str] | None = None,
    ):
        self.stage, self.pool, self.serving, self.reader, self.commit = stage, pool, serving, reader, commit
        self.stop, self.expecting, self.before = stop, expecting, before
        self.reasons: Counter[str] = Counter(failed_before or {})
        self.outcome = Outcome()
        self.latencies = Latencies()
        self.in_flight = 0
        self._ready: deque[_Attempted] = deque()  # prepared, not sent yet
        self._again: deque[_Attempted] = deque()  # given back, and first in line
        self._pausing = 0  # given back, but pausing
        self._fed = False
        self._uncommitted: list[Completion] = []
        self._stop: BaseException | None = None
        pool.changed = self._fill

    @property
    def done(self) -> int:
        """Requests that have their result."""
        return self.outcome.new + len(self.outcome.failures)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._ready) + len(self._again) + self._pausing

    def run(self, requests: Iterable[PendingRequest]) -> Outcome:
        """Send every request.

        Raises `ClusterError` when the run must stop, `KeyboardInterrupt` after SIGINT or SIGTERM; whatever was
        completed by then has been committed.
        """
        asyncio.run(self._run(iter(requests)))
        if self._stop is None:
            self._check_failures(final=True)
        if self._stop is not None:
            raise self._stop
        return self.outcome

    async def _run(self, requests: Iterator[PendingRequest]) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._succeeded = loop.time()  # when a server last proved that it works
        self._done = asyncio.Event()
        self._feed_more = asyncio.Event()
        self._batch_full = asyncio.Event()
        self._committing = asyncio.Lock()
        self._tasks = set[asyncio.Task[None]]()
        with self._signals(loop):
            async with session() as http:
                self._http = http
                coroutines = [self._feed(requests), self.pool.run(http), self._watch(), self._commit_often()]
                workers = [asyncio.create_task(coroutine) for coroutine in coroutines]
                feeder = workers[0]
                done = asyncio.create_task(self._done.wait())
                try:
                    waiting = {done, *workers}
                    while not done.done():  # only the feeder ends by itself; an error in any of them ends the run
                        ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                        for task in ended:
                            task.result()
                        if feeder in ended:
                            self._fill()
                    if self._stop is not None and self._tasks:
                        feeder.cancel()
                        await self._drain()
                finally:
                    self._done.set()
                    for task in (done, *workers, *self._tasks):
                        task.cancel()
                    await asyncio.gather(done, *workers, *self._tasks, return_exceptions=True)
                    await self._commit_now()

    async def _drain(self) -> None:
        """Wait for requests in flight: a moment, longer after a signal, and as long as it takes where they are paid
        for by the token."""
        await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS if isinstance(self._stop, KeyboardInterrupt) else 1.0)
        priced = [one.tasks for one in self.pool.endpoints if one.spec.price is not None]
        if paid := set().union(*priced) & self._tasks:
            note = f"{self.stage}: waiting for {len(paid)} requests in flight, which are paid for by the token"
            print(note, file=sys.stderr, flush=True)
            await asyncio.wait(paid, timeout=self.serving.request_timeout_s)

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """SIGINT and SIGTERM stop the sending; a second one takes its usual effect."""

        def stop() -> None:
            note = f"{self.stage}: stopping; waiting up to {DRAIN_SECONDS:g} s for requests in flight"
            print(note, file=sys.stderr, flush=True)
            self._end(KeyboardInterrupt())
            remove()

        def remove() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)
        except (ValueError, RuntimeError):  # not the main thread: others handle the signals
            yield
            return
        try:
            yield
        finally:
            remove()

    def _end(self, why: BaseException) -> None:
        if self._stop is None:
            self._stop = why
        self._done.set()

    async def _feed(self, requests: Iterator[PendingRequest]) -> None:
        """Render and hash in a thread, ahead of the free slot."""
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(requests, FEED_ROWS))):
            self._ready.extend(map(_Attempted, batch))
            self._fill()
            while len(self._ready) >= FEED_ROWS:
                self._feed_more.clear()
                await self._feed_more.wait()
        self._fed = True

    def _fill(self) -> None:
        """Start requests while there is one to send and an endpoint with a free slot."""
        if self._done.is_set():
            return
        behind = self._behind()
        while (self._again or self._ready) and not behind:
            endpoint, request = self._next()
            if endpoint is None or request is None:
                return
            endpoint.outstanding += 1
            self.in_flight += 1
            charge = self.pool.charge(endpoint, self._now(), self._size(request))
            task = asyncio.create_task(self._try(endpoint, request, charge))
            self._tasks.add(task)
            endpoint.tasks.add(task)
        if len(self._ready) < FEED_ROWS:
            self._feed_more.set()
            if self._fed and not (self._again or self._ready or self.in_flight or self._pausing):
                self._done.set()

    def _next(self) -> tuple[Endpoint | None, _Attempted | None]:
        """A free endpoint and the request that it gets. One that waits for another endpoint holds nobody up."""
        now = self._now()
        for queue in (self._again, self._ready):
            for place, request in enumerate(itertools.islice(queue, PASSED_OVER)):
                endpoint = self.pool.choose(now, request.avoid, request.refused, self._size(request))
                if endpoint is not None:
                    del queue[place]
                    return endpoint, request
                if not request.refused:
                    return None, None  # no endpoint is free
        return None, None

    def _size(self, request: _Attempted) -> Size:
        """The tokens that a request takes at most; not counted where nobody needs it."""
        if not self.pool.metered:
            return NOTHING
        if request.size is None:
            pending = request.pending
            prompt = pending.prompt_tokens or self.reader.model.count_tokens([pending.request.prompt])[0]
            request.size = Size(prompt, self.reader.max_new_tokens)
        return request.size

    async def _try(self, endpoint: Endpoint, request: _Attempted, charge: Charge) -> None:
        """One try at one endpoint; the request is then completed, has failed, or is given back."""
        pending = request.pending
        began = self._now()
        pause = 0.0
        result: Completion | Failure | None = None
        try:
            result = await self._completion(endpoint, pending, charge)
        except asyncio.CancelledError:
            if self._done.is_set():
                raise
            self._error_of(endpoint, Requeue("stalled", f"{endpoint.url} has stalled"))
        except Permanent as error:  # the server works
            endpoint.streak, self._succeeded = 0, self._now()
            result = Failure(pending.key, error.reason, error.detail, request.attempts + 1)
        except RequestError as error:
            pause = self._count(endpoint, request, error)
            if request.attempts >= self.serving.attempts:
                result = Failure(pending.key, error.reason, error.detail, request.attempts)
        except Exception as error:  # a defect of ours: end the run with it
            self._end(error)
        else:
            now = self._now()
            self._succeeded = now
            self.latencies.add(now - began)
            endpoint.succeeded(now, result.tokens)
        finally:
            charge.close()
            endpoint.outstanding -= 1
            self.in_flight -= 1
            task = asyncio.current_task()
            self._tasks.discard(task)  # type: ignore[arg-type]
            endpoint.tasks.discard(task)  # type: ignore[arg-type]
        if result is not None:
            self._take(result)
        elif pause:
            self._pausing += 1
            asyncio.get_running_loop().call_later(pause * random.uniform(0.5, 1.5), self._back, request)
        else:
            self._again.append(request)
        self._fill()

    def _back(self, request: _Attempted) -> None:
        self._pausing -= 1
        self._again.append(request)
        self._fill()

    async def _completion(self, endpoint: Endpoint, pending: PendingRequest, charge: Charge) -> Completion:
        """What an endpoint completes, and what it cost. Raises a `RequestError`."""
        connection, began = endpoint.connection, self._now()
        try:
            answer = await self._generate(endpoint, pending.request)
            most = charge.size
            charge.settle(Size(answer.prompt_tokens or most.prompt, answer.tokens or most.completion))
        except RequestError as error:
            if not error.billed:
                charge.settle(NOTHING)
            if not isinstance(error, EndpointRejected):
                raise
            if endpoint.proved < began and not endpoint.draining and await self._rejects_all(endpoint):
                raise
            raise (error if endpoint.draining else PromptRejected(error.reason, error.detail)) from None
        with judging(endpoint.url, connection.headers):
            completion = self.reader.completion(pending, answer, connection.engine)
        if completion.tokens != answer.tokens:
            endpoint.miscounted += 1
            if endpoint.miscounted == 1:
                note = "does not count the tokens of its texts, or cannot be right; they are counted here"
                print(f"warning: {endpoint.url} {note}", file=sys.stderr, flush=True)
        return completion

    def _generate(self, endpoint: Endpoint, request: Request) -> Coroutine[None, None, Answer]:
        connection, timeout_s = endpoint.connection, self.serving.request_timeout_s
        return generate(self._http, endpoint.url, connection.headers, connection.api, request, timeout_s)

    async def _rejects_all(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint that has refused a request, and completed none since, refuses a harmless one too."""
        try:
            await self._generate(endpoint, HARMLESS)
        except EndpointRejected:
            return True
        except RequestError:
            pass
        return False

    def _count(self, endpoint: Endpoint, request: _Attempted, error: RequestError) -> float:
        """Count an error against the request and the endpoint; returns the request's pause in seconds."""
        pause = 0.0
        request.avoid, request.refused = endpoint, isinstance(error, PromptRejected)
        if isinstance(error, Overloaded):
            endpoint.overloaded(self._now())
            pause = min(OVERLOAD_SECONDS[0] * 2 ** min(request.overloads, 16), OVERLOAD_SECONDS[1])
            if error.pause and not self.pool.has_other(endpoint):
                pause = error.pause
            request.overloads += 1
            request.attempts += request.overloads % OVERLOADS_PER_ATTEMPT == 0
        elif isinstance(error, Retryable):
            request.attempts += 1
        elif isinstance(error, Requeue):
            request.resets += 1
            request.attempts += request.resets % RESETS_PER_ATTEMPT == 0
        self._error_of(endpoint, error)
        return pause

    def _error_of(self, endpoint: Endpoint, error: RequestError) -> None:
        self.outcome.retries[error.reason] += 1
        endpoint.last_error = error.detail
        if isinstance(error, EndpointRejected):
            self.pool.refuse(endpoint, error.detail)
        elif not isinstance(error, Overloaded | PromptRejected):
            endpoint.failed(self._now())

    def _take(self, result: Completion | Failure) -> None:
        if isinstance(result, Completion):
            self._uncommitted.append(result)
            if len(self._uncommitted) >= COMMIT_ROWS:
                self._batch_full.set()
            self.outcome.new += 1
            self.outcome.tokens += result.tokens
            self.outcome.prompt_tokens += result.prompt_tokens
        else:
            self.outcome.failures.append(result)
            self.reasons[result.reason] += 1
            self._check_failures()

    async def _watch(self) -> None:
        """End the run when the servers are gone, or have completed nothing for too long."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._fill()  # nothing else wakes up when a rest ends
            why = self.pool.failure or self.stop() or self._out_of_money() or self._silence()
            if why is not None:
                return self._end(why)

    def _out_of_money(self) -> ConfigError | None:
        """The next request might cost more than is left, and nothing is in flight that could leave some."""
        following = next(iter(self._again or self._ready), None)
        if self.in_flight or following is None or self.pool.affords(self._size(following)):
            return None
        wallet = self.pool.wallet
        return ConfigError(
            f"this run's budget is spent: generate.max_money is {wallet.limit:g}, {wallet.elsewhere + wallet.paid:.4g}"
            " of it is spent on these requests, and the next one might exceed it. What was completed is in the store;"
            " raise it to go on"
        )

    def _silence(self) -> ClusterError | None:
        if not self.in_flight and any(e.limits.waiting and not e.broken for e in self.pool.endpoints):
            self._succeeded = self._now()  # a limit per minute is no failed server
        if not self.pool.endpoints and self.expecting():
            self._succeeded = self._now()  # a job that waits in a queue is not a failed server
        if not (self.queued or self.in_flight) or self._behind():
            self._succeeded = self._now()  # the run waits for its own prompts, or for the disk
        idle = self._now() - self._succeeded
        if not self.pool.endpoints and idle > self.serving.startup_timeout_s:
            reasons = "; ".join(self.pool.waiting_for.values()) or "there is no endpoint"
            first = next(iter(self.pool.waiting_for), "the servers")
            return ClusterError(
                f"{first}/health did not become healthy within {self.serving.startup_timeout_s:g} s ({reasons}); start"
                " the server, or fix serving.endpoints in the compute file"
            )
        patience = self.serving.startup_timeout_s + (self.serving.request_timeout_s if self.in_flight else 0)
        if idle > patience:
            errors = [endpoint.last_error for endpoint in self.pool.endpoints if endpoint.last_error]
            tried = "".join(f", {n} x {reason} so far" for reason, n in self.outcome.retries.most_common(3))
            waiting = f"{self.in_flight} requests are in flight, {self.queued} wait{tried}"
            return ClusterError(
                f"no completion for {idle:.0f} s ({waiting}){''.join(f'; {error}' for error in errors)}. Look at the"
                " server(s) and run again; what was completed is in the store"
            )
        return None

    def _behind(self) -> bool:
        """Whether the disk does not keep up with what arrives."""
        return len(self._uncommitted) > COMMITS_BEHIND * COMMIT_ROWS

    async def _commit_often(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._batch_full.wait(), COMMIT_SECONDS)
            self._batch_full.clear()
            try:
                await asyncio.shield(self._commit_now())
            except ClusterError as error:
                return self._end(error)
            self._fill()

    async def _commit_now(self) -> None:
        async with self._committing:
            batch, self._uncommitted = self._uncommitted, []
            try:
                if batch:
                    await asyncio.to_thread(self.commit, batch)
            except BaseException:
                self._uncommitted = batch + self._uncommitted  # the end of the run tries again
                raise

    def _check_failures(self, final: bool = False) -> None:
        """Stop when more than `max_failed_share` of the requests failed, and say why."""
        failed, new = sum(self.reasons.values()), self.outcome.new
        done = self.before + new + failed
        judged = done if final else max(done, JUDGED_ROWS)
        nothing = final and failed and not self.before and not new
        if nothing or (failed > self.serving.max_failed_share * judged and failed + new >= MIN_RESULTS):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            sample = f"; the last: {self.outcome.failures[-1].detail}" if self.outcome.failures else ""
            limit = f", more than serving.max_failed_share = {self.serving.max_failed_share:g} allows"
            self._end(
                ClusterError(
                    f"{failed} of {done} requests failed ({reasons}){'' if nothing else limit}{sample}. What was"
                    " completed is in the store"
                )
            )

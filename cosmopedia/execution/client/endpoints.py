"""Which endpoint gets the next request: client-side balancing over unequal servers that come and go.

Each endpoint has a limit of outstanding requests. Where a server reports its load (`/metrics`), the limit keeps a
short queue in front of its batch: no slot of the server waits for the network, and no request waits behind a slow
server while a fast one is idle. Where it does not, the limit falls to what a 429 leaves and grows by one per round
trip. A circuit breaker keeps requests away from a server that fails every one, and lets one through at a time to see
whether it has recovered. Membership is polled, so servers join and leave during a run.
"""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from cosmopedia.core.errors import ClusterError
from cosmopedia.execution.client.charges import NOTHING, Charge, Limits, Size, Wallet, cost
from cosmopedia.execution.client.http import (
    Connection,
    Identity,
    RequestError,
    WrongServer,
    check_health,
    connect,
    read_load,
)
from cosmopedia.execution.compute import EndpointSpec, Serving
from cosmopedia.generation.apis import Load
from cosmopedia.generation.requests import Sampling

POLL_SECONDS = 0.5  # between two reads of a server's gauges
GROW_SECONDS = 0.05  # the same while its limit grows
START_LIMIT = 128.0  # of a server that reports its load: a slow one must not begin with a long queue
MEMBER_SECONDS = 1.0  # between two polls of the members
QUEUE_SHARE = 0.05  # of the running requests: the queue to keep in front of a server's batch
REST_SECONDS = (0.2, 10.0)  # of an open breaker: the first, doubling up to the second
BREAK_AFTER = 5  # consecutive failures that open it
STALL_SECONDS = 30.0  # without a completion or an answer to a probe: requests in flight go elsewhere


@dataclass(eq=False)
class Endpoint:
    """A server and what this client knows about it. Times are the event loop's, in seconds."""

    spec: EndpointSpec
    connection: Connection
    max_outstanding: int  # requests
    gpus: int = 0
    limit: float = 0.0
    outstanding: int = 0
    load: Load | None = None
    peak: float = 0.0  # most requests seen running at once: the size of its batch
    full: bool = False  # a queue was seen: the limit then grows in small steps
    streak: int = 0  # failures since the last success
    rest: float = field(default_factory=lambda: REST_SECONDS[0])
    resting_until: float = 0.0
    draining: bool = False
    since: float = 0.0  # when it joined
    until: float | None = None  # when it left
    heard: float = 0.0  # when it last answered anything
    last_error: str = ""
    completions: int = 0
    tokens: int = 0
    miscounted: int = 0  # completions whose tokens it did not count, or not believably
    proved: float = float("-inf")  # when it last completed a request
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)  # requests in flight

    def __post_init__(self) -> None:
        self.limit = float(self.max_outstanding)
        self.limits = Limits(self.spec)  # per minute

    @property
    def url(self) -> str:
        return self.spec.url

    @property
    def broken(self) -> bool:
        """Whether the breaker is open, or lets one request at a time through."""
        return self.streak >= BREAK_AFTER

    def free(self, now: float, size: Size = NOTHING) -> bool:
        """Whether it may get one more request, of a size."""
        if self.draining or now < self.resting_until:
            return False
        return self.outstanding < (1 if self.broken else int(self.limit)) and self.limits.allows(now, size)

    def most(self, size: Size) -> float:
        """The most that a request of a size can cost here."""
        return cost(self.spec.price, size)

    def succeeded(self, now: float, tokens: int) -> None:
        """A completion arrived."""
        self.streak = 0
        self.rest = REST_SECONDS[0]
        self.last_error = ""
        self.heard = self.proved = now
        self.completions += 1
        self.tokens += tokens
        if self.load is None:
            self.limit = min(self.limit + 1 / self.limit, float(self.max_outstanding))

    def overloaded(self, now: float) -> None:
        """It takes fewer than are outstanding now; 429 comes at once, so the limit settles at what it does take."""
        self.heard = now
        self.limit = max(min(self.limit, self.outstanding - 1.0), 1.0)

    def failed(self, now: float) -> None:
        """A request failed in a way that may be the server's fault; a streak of them opens the breaker."""
        self.streak += 1
        if self.broken and now >= self.resting_until:
            self.resting_until = now + self.rest
            self.rest = min(self.rest * 2, REST_SECONDS[1])

    def measured(self, load: Load) -> bool:
        """Move the limit so that the server's queue is short but not empty; others may use the server too. Returns
        whether it grew."""
        self.load = load
        self.peak = max(self.peak, load.running)
        wanted = max(1.0, QUEUE_SHARE * load.running)
        if load.waiting > 2 * wanted:
            self.limit = max(min(self.limit, self.outstanding - (load.waiting - wanted)), 1.0)
        elif (
            load.waiting < wanted
            and load.running >= 0.8 * self.outstanding  # else some are still on their way
            and int(self.limit) - 1 <= self.outstanding < self.max_outstanding
        ):
            self.limit = min(self.limit + (wanted if self.full else self.limit), float(self.max_outstanding))
            return True
        self.full |= load.waiting > 0
        return False

    def state(self, now: float) -> str:
        """One word for the status file."""
        if self.draining:
            return "draining"
        return ("resting" if now < self.resting_until else "trying") if self.broken else "in use"


class Pool:
    """The endpoints of one run.

    `members` lists the servers that are up; it is called regularly, in a thread. `changed` is called when a slot may
    have become free.
    """

    def __init__(
        self,
        members: Callable[[], list[EndpointSpec]],
        serving: Serving,
        sampling: Sampling,
        identity: Identity,
        changed: Callable[[], None] = lambda: None,
        wallet: Wallet | None = None,
    ):
        self.wallet = wallet or Wallet()
        self.members, self.serving, self.sampling, self.identity = members, serving, sampling, identity
        self.changed = changed
        self.endpoints: list[Endpoint] = []
        self.left: list[Endpoint] = []  # their counts still count
        self.waiting_for: dict[str, str] = {}  # url -> why it is not in use yet
        self.known: set[str] = set()
        self._refused: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.failure: ClusterError | None = None

    def choose(
        self, now: float, avoid: Endpoint | None = None, never: bool = False, size: Size = NOTHING
    ) -> Endpoint | None:
        """The endpoint with the largest share of its limit free for a request of a size, or None.

        `avoid` is chosen only if no other is free; with `never`, only if no other takes requests.
        """
        free = [one for one in self.endpoints if one.free(now, size) and self.wallet.allows(one.most(size))]
        others = [endpoint for endpoint in free if endpoint is not avoid]
        if not others and (avoid is None or not never or not self.has_other(avoid)):
            others = free
        return min(others, key=lambda endpoint: endpoint.outstanding / endpoint.limit, default=None)

    @property
    def metered(self) -> bool:
        """Whether the size of a request matters to any endpoint."""
        return any(one.spec.price is not None or one.spec.tokens_per_minute is not None for one in self.endpoints)

    def affords(self, size: Size) -> bool:
        """Whether there is money for a request of a size at any endpoint in use; true while there is none."""
        present = [one for one in self.endpoints if not one.draining]
        return not present or any(self.wallet.allows(one.most(size)) for one in present)

    def charge(self, endpoint: Endpoint, now: float, size: Size) -> Charge:
        """Reserve what a request can take at most."""
        return Charge.of(endpoint.limits, self.wallet, endpoint.spec.price, now, size)

    def has_other(self, endpoint: Endpoint) -> bool:
        """Whether another endpoint than this takes requests."""
        return any(e is not endpoint and not e.draining and not e.broken for e in self.endpoints)

    def refuse(self, endpoint: Endpoint, detail: str) -> None:
        """Stop using an endpoint in this run: it refuses every request alike."""
        if endpoint.url not in self._refused:
            self._refused.add(endpoint.url)
            print(f"warning: {detail}; it is no longer used", file=sys.stderr, flush=True)
        endpoint.draining = True
        if all(e.draining for e in self.endpoints) and not self.waiting_for:
            self.failure = WrongServer(f"{detail}; fix the address, token_env or served_as in serving.endpoints")

    def uses(self, url: str) -> bool:
        """Whether requests are in flight there, or may be sent."""
        return any(e.url == url and (e.outstanding or not e.draining) for e in self.endpoints)

    @property
    def gpus(self) -> int:
        """GPUs of the endpoints in use."""
        return sum(endpoint.gpus for endpoint in self.endpoints)

    def instance_seconds(self, now: float) -> float:
        """Seconds that endpoints have been in use, in sum."""
        return sum((e.until or now) - e.since for e in (*self.endpoints, *self.left))

    def gpu_seconds(self, now: float) -> float:
        """The same, weighted by their GPUs."""
        return sum(((e.until or now) - e.since) * e.gpus for e in (*self.endpoints, *self.left))

    def utilisation(self) -> float | None:
        """Requests running over the most seen running, over all servers; None before anything ran."""
        known = [e for e in self.endpoints if e.load is not None and e.peak and not e.draining]
        if known:
            return sum(e.load.running for e in known if e.load) / sum(e.peak for e in known)
        slots = sum(e.limit for e in self.endpoints)
        return sum(e.outstanding for e in self.endpoints) / slots if slots else None

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Watch the members until cancelled."""
        first = True
        try:
            while True:
                for spec in self._joined(await asyncio.to_thread(self.members), first):
                    task = asyncio.create_task(self._serve(http, spec, first))
                    self._tasks[spec.url] = task
                first = False
                await asyncio.sleep(MEMBER_SECONDS if self.endpoints else 0.05)
        except ClusterError as error:
            self.failure = error
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _joined(self, specs: list[EndpointSpec], first: bool) -> list[EndpointSpec]:
        """The new members; those that left drain."""
        present = {spec.url for spec in specs}
        for endpoint in self.endpoints:
            if endpoint.url not in present and not endpoint.draining:
                endpoint.draining = True
        for url in self._tasks.keys() - present:
            if all(e.url != url for e in self.endpoints):
                self._tasks.pop(url).cancel()
                self.waiting_for.pop(url, None)
        for url, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[url]
                task.result()
        self.known |= present
        return [spec for spec in specs if spec.url not in self._tasks and spec.url not in self._refused]

    async def _serve(self, http: aiohttp.ClientSession, spec: EndpointSpec, first: bool) -> None:
        """Connect, then read the gauges until the endpoint has left and is empty."""
        loop = asyncio.get_running_loop()
        self.waiting_for[spec.url] = "no answer yet"
        while True:
            try:
                connection = await connect(http, spec, self.sampling, self.identity)
                break
            except WrongServer as error:
                if first or not self.endpoints:
                    self.failure = error
                else:
                    print(f"warning: {error}", file=sys.stderr, flush=True)
                self.waiting_for.pop(spec.url, None)
                self._refused.add(spec.url)
                return
            except RequestError as error:
                self.waiting_for[spec.url] = error.detail
                await asyncio.sleep(0.2)
        limit = min(self.serving.concurrency, connection.max_concurrent or self.serving.concurrency)
        gpus = self.serving.gpus if spec.gpus is None else spec.gpus
        endpoint = Endpoint(spec, connection, limit, gpus, since=loop.time(), heard=loop.time())
        self.waiting_for.pop(spec.url, None)
        with contextlib.suppress(RequestError):
            if await read_load(http, spec.url, connection.headers, connection.api) is not None:
                endpoint.limit = min(START_LIMIT, endpoint.limit)
        self.endpoints.append(endpoint)
        if self.endpoints[1:]:
            print(f"{spec.url} joined ({connection.engine})", file=sys.stderr, flush=True)
        self.changed()
        await self._watch(http, endpoint)
        self.endpoints.remove(endpoint)
        endpoint.until = loop.time()
        self.left.append(endpoint)

    async def _watch(self, http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        gauges = True
        while not (endpoint.draining and not endpoint.outstanding):
            grew = False
            try:
                headers = endpoint.connection.headers
                load = await read_load(http, endpoint.url, headers, endpoint.connection.api) if gauges else None
                if load is None:
                    gauges, endpoint.load = False, None
                    await check_health(http, endpoint.spec, headers)
                else:
                    grew = endpoint.measured(load)
                endpoint.heard = loop.time()
            except (RequestError, ClusterError) as error:
                silent = loop.time() - endpoint.heard
                if endpoint.draining or silent > STALL_SECONDS:
                    endpoint.last_error = endpoint.last_error or str(error)
                    self._give_back(endpoint, loop.time())
            self.changed()
            await asyncio.sleep(GROW_SECONDS if grew else POLL_SECONDS)

    def _give_back(self, endpoint: Endpoint, now: float) -> None:
        """It has stalled: cancel its requests, which then go elsewhere, and open the breaker."""
        endpoint.streak = max(endpoint.streak, BREAK_AFTER)
        endpoint.failed(now)
        endpoint.load = None
        for task in list(endpoint.tasks):
            task.cancel("stalled")


class Latencies:
    """Seconds that the last requests took."""

    def __init__(self, kept: int = 4096):
        self._seconds: deque[float] = deque(maxlen=kept)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def quantiles(self) -> dict[str, float]:
        """p50, p90 and p99, in seconds; empty before the first request."""
        seconds = sorted(self._seconds)
        if not seconds:
            return {}
        return {f"p{q}": round(seconds[min(len(seconds) * q // 100, len(seconds) - 1)], 3) for q in (50, 90, 99)}

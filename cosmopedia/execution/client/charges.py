"""What a request may cost at a hosted endpoint: its limits per minute, and money.

Before a request is sent, the most that it can take is reserved: its prompt's tokens and `max_new_tokens`. When its
answer is here, what it took is paid and the rest is free again. Where nobody knows what the provider counted (a
timeout, an answer that cannot be read), the most is taken to be paid, so that a budget is never exceeded.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from cosmopedia.execution.compute import EndpointSpec, TokenPrice

WINDOW_SECONDS = 60.0  # over which limits per minute count, by the time of sending


class Size(NamedTuple):
    """Tokens of a request, at most."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


NOTHING = Size(0, 0)


@dataclass
class Wallet:
    """Money for tokens in one run; no more than `limit` is spent."""

    limit: float | None = None  # None: no bound
    elsewhere: float = 0.0  # spent on the same requests by earlier attempts, and on machines by this one
    paid: float = 0.0
    reserved: float = 0.0  # for requests in flight

    def allows(self, cost: float) -> bool:
        """Whether a request of at most this cost may be sent."""
        if self.limit is None or not cost:
            return True
        return self.elsewhere + self.paid + self.reserved + cost <= self.limit


class Limits:
    """The requests and tokens per minute of one endpoint, in a window that slides."""

    def __init__(self, spec: EndpointSpec):
        self.requests, self.tokens = spec.requests_per_minute, spec.tokens_per_minute
        self._sent: deque[list[float]] = deque()  # [time, tokens] of each request in the window
        self._tokens = 0.0
        self.waiting = False  # whether the last request had to wait

    def allows(self, now: float, size: Size) -> bool:
        """Whether a request may be sent now. One larger than the limit itself goes when the window is empty."""
        while self._sent and now - self._sent[0][0] >= WINDOW_SECONDS:
            self._tokens -= self._sent.popleft()[1]
        fits = self.tokens is None or not self._sent or self._tokens + size.total <= self.tokens
        self.waiting = not fits or (self.requests is not None and len(self._sent) >= self.requests)
        return not self.waiting

    def take(self, now: float, size: Size) -> list[float]:
        """Count a request; `correct` with what is returned once its tokens are known."""
        entry = [now, float(size.total)]
        if self.requests is not None or self.tokens is not None:
            self._sent.append(entry)
            self._tokens += entry[1]
        return entry

    def correct(self, entry: list[float], tokens: int) -> None:
        """What a counted request has taken in truth; one that has left the window changes nothing."""
        if self._sent and entry[0] >= self._sent[0][0]:
            self._tokens += tokens - entry[1]
            entry[1] = tokens


@dataclass
class Charge:
    """One request on its way to an endpoint."""

    limits: Limits
    wallet: Wallet
    price: TokenPrice | None
    size: Size
    entry: list[float]
    _open: bool = field(default=True, init=False)

    @classmethod
    def of(cls, limits: Limits, wallet: Wallet, price: TokenPrice | None, now: float, size: Size) -> "Charge":
        """Reserve the most that a request can take."""
        charge = cls(limits, wallet, price, size, limits.take(now, size))
        wallet.reserved += charge.most
        return charge

    @property
    def most(self) -> float:
        return cost(self.price, self.size)

    def settle(self, size: Size) -> None:
        """What the request has taken; only the first word counts."""
        if self._open:
            self._open = False
            self.limits.correct(self.entry, size.total)
            self.wallet.reserved -= self.most
            self.wallet.paid += cost(self.price, size)

    def close(self) -> None:
        """Nobody has said what it took: the most."""
        self.settle(self.size)


def cost(price: TokenPrice | None, size: Size) -> float:
    """Money for the tokens of a request."""
    return 0.0 if price is None else (size.prompt * price.prompt + size.completion * price.completion) / 1e6

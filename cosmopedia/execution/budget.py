"""What a run will cost before it begins, and what it has cost: completions, tokens, GPU hours.

A forecast multiplies the requests that the store lacks by the mean tokens of this model's completions so far, and
divides by the rate that a run of this model on these machines has measured (`<store root>/rates.json`, by model and
compute file; the pilot measures the first). Nothing in here changes a result.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import store_root
from cosmopedia.core.params import Params
from cosmopedia.execution import rates
from cosmopedia.execution.compute import Serving, TokenPrice, compute_path

MIN_COMPLETIONS = 20  # for a run's rate to mean something
SATURATED = 0.8  # utilisation from which a run's rate holds for longer runs


class Budget(Params):
    """What a run may cost at most; null: no limit."""

    max_gpu_hours: float | None = Field(gt=0)
    max_tokens: int | None = Field(gt=0)
    max_money: float | None = Field(default=None, gt=0)  # over all attempts at the same requests


class Rate(Params):
    """What a run measured; `tokens_per_second` is of one instance of `gpus` GPUs."""

    tokens_per_second: float = Field(gt=0)
    gpus: int = Field(ge=0)
    tokens_per_completion: float = Field(gt=0)
    saturated: bool  # the batches were full: a longer run will not be faster
    completions: int
    measured: str


def rates_path() -> Path:
    """The file of measured rates."""
    return store_root() / "rates.json"


def _name(identity: str) -> str:
    return f"{compute_path().stem} {identity}"


def read_rate(identity: str) -> Rate | None:
    """The last rate of a model with the chosen compute file."""
    try:
        return Rate.model_validate(rates.read_rates(rates_path()).get(_name(identity)))
    except ValidationError:
        return None


def write_rate(
    identity: str, completions: int, tokens: int, instance_seconds: float, gpus: int, utilisation: float
) -> None:
    """Keep what a run measured, unless it was too short, or the known rate is from full batches and this is not."""
    if completions < MIN_COMPLETIONS or instance_seconds <= 0 or not tokens:
        return
    saturated = utilisation >= SATURATED
    known = read_rate(identity)
    if known and known.saturated and not saturated:
        return
    rate = Rate(
        tokens_per_second=round(tokens / instance_seconds, 2),
        gpus=gpus,
        tokens_per_completion=round(tokens / completions, 1),
        saturated=saturated,
        completions=completions,
        measured=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    try:
        rates.write_rate(rates_path(), _name(identity), rate.model_dump())
    except OSError as error:  # a full disk must not hide what ended the run
        print(f"warning: {rates_path()}: {error.strerror}; this run's rate is not kept", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Forecast:
    """What is to be sent, and what it will cost, as far as that is known."""

    requests: int  # to send
    cached: int
    tokens: int  # to generate
    tokens_known: bool  # False: `tokens` is the maximum that sampling allows
    instance_hours: float | None  # of one server; None: no rate is known
    gpus: int  # of one server
    basis: str  # where the rate comes from
    prompt_tokens: int | None = None  # of the requests to send, about; None: not counted
    price: float | None = None  # per GPU hour; None: the compute file states none
    token_price: TokenPrice | None = None  # of an endpoint that is paid by the token

    @property
    def gpu_hours(self) -> float | None:
        return self.instance_hours * self.gpus if self.instance_hours is not None and self.gpus else None

    @property
    def money(self) -> float | None:
        machines = self.gpu_hours * self.price if self.gpu_hours is not None and self.price is not None else None
        if self.token_price is None:
            return machines
        by_token = (self.prompt_tokens or 0) * self.token_price.prompt + self.tokens * self.token_price.completion
        return (machines or 0.0) + by_token / 1e6

    def sentence(self) -> str:
        """As people read it: "1.2M cached, 80k to generate, 66M tokens, about 31 GPU hours at the measured rate"."""
        parts = [f"{_short(self.cached)} cached, {_short(self.requests)} to generate"]
        if self.requests:
            parts.append(f"{'' if self.tokens_known else 'at most '}{_short(self.tokens)} tokens")
            if self.instance_hours is None:
                parts.append("no rate is known yet")
            else:
                hours = self.instance_hours * max(self.gpus, 1)
                unit = "GPU" if self.gpus else "CPU server"
                about = f"{hours:,.1f} {unit} hours" if hours >= 1 else f"{hours * 60:,.1f} {unit} minutes"
                parts.append(f"about {about} at {self.basis}")
            if self.prompt_tokens is not None:
                parts.append(f"prompts of {_short(self.prompt_tokens)} tokens")
            if self.money is not None:
                prices = [f"{self.price:g} per GPU hour"] if self.price is not None and self.gpus else []
                if self.token_price is not None:
                    each = f"{self.token_price.prompt:g} and {self.token_price.completion:g}"
                    prices.append(f"{each} per million tokens of prompt and completion")
                parts.append(f"{self.money:,.2f} at {' and '.join(prices)}")
        return ", ".join(parts)

    def metrics(self) -> dict[str, Any]:
        """For metrics and MLflow."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "gpu_hours": self.gpu_hours,
            "money": self.money,
            "instance_hours": self.instance_hours,
            "basis": self.basis,
        }


def forecast(
    requests: int,
    cached: int,
    cached_tokens: float | None,
    max_tokens: int,
    identity: str,
    serving: Serving,
    prompt_tokens: int | None = None,
    price: float | None = None,
    token_price: TokenPrice | None = None,
) -> Forecast:
    """`cached_tokens`: mean tokens of this run's completions in the store; `max_tokens`: the limit of a completion;
    `prompt_tokens`: of all requests to send; `price`: of a GPU hour; `token_price`: of hosted endpoints."""
    rate = read_rate(identity)
    mean = cached_tokens or (rate.tokens_per_completion if rate else None)
    tokens = round(requests * min(mean or max_tokens, max_tokens))
    speed, gpus, basis = _speed(rate, serving)
    hours = tokens / speed / 3600 if speed else None
    return Forecast(requests, cached, tokens, mean is not None, hours, gpus, basis, prompt_tokens, price, token_price)


def _speed(rate: Rate | None, serving: Serving) -> tuple[float | None, int, str]:
    """Tokens/s of one instance. The rate of a run that did not fill its servers is a lower bound."""
    stated = serving.tokens_per_second
    if rate and rate.gpus == serving.gpus and (rate.saturated or not stated or rate.tokens_per_second >= stated):
        full = "" if rate.saturated else " by a run that did not fill the servers"
        return rate.tokens_per_second, rate.gpus, f"the rate measured{full} ({rate.tokens_per_second:,.0f} tokens/s)"
    if stated:
        return stated, serving.gpus, f"the compute file's serving.tokens_per_second ({stated:,.0f})"
    return None, serving.gpus, "no known rate"


def refuse(plan: Forecast, budget: Budget, spent_before: float = 0.0) -> None:
    """`ConfigError` when the forecast is above the budget.

    `spent_before` is the money that earlier attempts at the same requests have cost.
    """
    what = _beyond(plan, budget, spent_before) if plan.requests else None
    if what is not None:
        raise ConfigError(f"{plan.sentence()}: that is {what}. Generate fewer prompts, or raise the limit")


def _beyond(plan: Forecast, budget: Budget, spent_before: float) -> str | None:
    """By what a forecast is above the budget. `ConfigError` where a bound has nothing to be measured with."""
    if budget.max_tokens is not None and plan.tokens > budget.max_tokens:
        return f"{plan.tokens:,} tokens, more than generate.max_tokens = {budget.max_tokens:,}"
    if budget.max_gpu_hours is not None and plan.gpus:
        hours = _known_hours(plan, "max_gpu_hours")
        if hours > budget.max_gpu_hours:
            return f"about {hours:,.1f} GPU hours, more than generate.max_gpu_hours = {budget.max_gpu_hours:g}"
    if budget.max_money is not None:
        if plan.token_price is None and plan.price is None:
            raise ConfigError(
                "generate.max_money is set, but the compute file states no price; set price_per_gpu_hour, or the price"
                " of its endpoints"
            )
        if plan.price is not None and plan.gpus:
            _known_hours(plan, "max_money")
        total = spent_before + (plan.money or 0.0)
        if total > budget.max_money:
            before = f", {spent_before:,.4g} of it spent by earlier attempts" if spent_before else ""
            return f"about {total:,.4g} in money{before}, more than generate.max_money = {budget.max_money:g}"
    return None


def _known_hours(plan: Forecast, bound: str) -> float:
    """The GPU hours of a forecast. `ConfigError` when no rate is known."""
    if plan.gpu_hours is None:
        raise ConfigError(
            f"generate.{bound} is set, but no rate is known to forecast with; let the pilot measure one, or set"
            " serving.tokens_per_second in the compute file"
        )
    return plan.gpu_hours


def spent(budget: Budget, gpu_seconds: float, tokens: int, machines: float = 0.0) -> ConfigError | None:
    """The error that ends a run once it has cost more than the budget.

    `machines` is money for GPU hours and of earlier attempts; money for tokens is never spent beyond the budget
    (client/charges.py).
    """
    if budget.max_money is not None and machines > budget.max_money:
        what = f"{machines:,.4g} in money is spent, generate.max_money is {budget.max_money:g}"
    elif budget.max_gpu_hours is not None and gpu_seconds / 3600 > budget.max_gpu_hours:
        what = f"{gpu_seconds / 3600:,.2f} GPU hours are spent, generate.max_gpu_hours is {budget.max_gpu_hours:g}"
    elif budget.max_tokens is not None and tokens > budget.max_tokens:
        what = f"{tokens:,} tokens are generated, generate.max_tokens is {budget.max_tokens:,}"
    else:
        return None
    return ConfigError(f"this run's budget is spent: {what}. What was completed is in the store; raise it to go on")


def _short(number: float) -> str:
    """1234567 as "1.2M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{number:,.0f}"


NO_BUDGET = Budget(max_gpu_hours=None, max_tokens=None)

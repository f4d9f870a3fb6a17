"""What the next `dvc repro` will run and cost: the numbers of `cosmo plan`, as data.

DVC says which stages changed; the pipeline's graph, which come after them; the stages' own code renders the prompts
as they would be now; the completion store, which takes over what DVC's cache has, says which of them are new. Nothing
is sent or trained.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cosmopedia.cli.stages import stage_module
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.execution.budget import Forecast
from cosmopedia.execution.compute import Compute, load_compute
from cosmopedia.execution.earlier import earlier_completions
from cosmopedia.execution.sending import forecast_of
from cosmopedia.execution.training_forecast import TrainingForecast
from cosmopedia.generation.complete import LookUp, StageRequests
from cosmopedia.store.store import CompletionStore
from cosmopedia.sweeps.sharing import in_order
from cosmopedia.tables.parquet import tables_in

# Disk, bytes per generated token. The first was measured on the rehearsal; the second is an estimate for long texts
# (the rehearsal's short ones take 6: a row's lineage weighs as much as its text there).
SEGMENT_BYTES_PER_TOKEN = 1.7  # zstd, in the completion store
PARQUET_BYTES_PER_TOKEN = 2.5  # a stage's table: text, prompt, seed and lineage
TABLE_STAGES = ("generate", "clean", "dedup", "decontaminate")
TOKEN_BYTES = 2
COUNTED, ESTIMATED, UNKNOWN = "counted", "estimated", "unknown"


@dataclass(frozen=True)
class Pending:
    """A stage that would run, why, and those before it that would run too."""

    stage: str
    why: str
    after: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Without the item of a stage that DVC repeats: "sources" of "sources@web"."""
        return self.stage.partition("@")[0]


@dataclass(frozen=True)
class StageCost:
    """What a stage would cost; None: nothing, or not known (`known` says which)."""

    stage: str
    why: str
    prompts_new: int | None = None
    prompts_cached: int | None = None
    prompt_tokens: int | None = None  # of the new prompts
    completion_tokens: int | None = None  # to generate
    training_tokens: int | None = None  # all seeds, every epoch
    hours: float | None = None  # of one server or trainer: generating, or training all seeds
    gpu_hours: float | None = None
    money: float | None = None
    disk_bytes: float | None = None
    known: str = COUNTED  # the number of prompts or seeds: counted, estimated or unknown
    basis: str = ""  # where tokens and hours come from


@dataclass(frozen=True)
class Plan:
    """Everything that would run, in order, with what it costs."""

    stages: tuple[StageCost, ...]
    price_per_gpu_hour: float | None
    notes: tuple[str, ...] = field(default=())

    def total(self, name: str) -> float | None:
        """The sum of a field of `StageCost` over the stages that have one; None where none has."""
        values = [value for stage in self.stages if (value := getattr(stage, name)) is not None]
        return sum(values) if values else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = [name for name in StageCost.__dataclass_fields__ if name not in ("stage", "why", "known", "basis")]
        return asdict(self) | {"total": {name: self.total(name) for name in numbers}}


def pending_stages() -> list[Pending]:
    """The stages that changed, and all that come after them, in the order in which DVC would run them."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            status, graph = repo.status(), repo.index.graph
    except DvcException as error:
        raise ConfigError(f"DVC cannot say what would run: {error}") from None
    needs = {stage.addressing: {one.addressing for one in graph.successors(stage)} for stage in graph}
    changed = {stage: _why(reasons) for stage, reasons in status.items()}
    pending: dict[str, Pending] = {}
    for stage in in_order(needs):
        before = {one for need in needs[stage] if need in pending for one in (need, *pending[need].after)}
        if stage in changed or before:
            nearest = [need for need in pending if need in needs[stage]]
            why = changed.get(stage) or f"after {_few(nearest)}"
            pending[stage] = Pending(stage, why, frozenset(before))
    return list(pending.values())


def make_plan(pending: Sequence[Pending] | None = None) -> Plan:
    """What the pending stages cost; without an argument, those that DVC names.

    Reads params, profile, data and store of the current folder.
    """
    stages = pending_stages() if pending is None else list(pending)
    compute, notes = load_compute(), list[str]()
    tokens: int | None = None  # of the finished completions, for the disk of what comes after
    costs = []
    for one in stages:
        cost = StageCost(one.stage, one.why)
        if one.name in ("label", "generate"):
            cost, completions = _requests_cost(one, {stage.name for stage in stages}, compute, notes)
            tokens = completions if one.name == "generate" else tokens
        elif one.name == "train":
            cost = _training_cost(one, compute)
        elif one.name == "pilot":
            cost = StageCost(one.stage, one.why, basis="its prompts are among those of generate")
        elif one.name in TABLE_STAGES and tokens is not None:
            cost = StageCost(one.stage, one.why, disk_bytes=tokens * PARQUET_BYTES_PER_TOKEN)
        elif one.name == "tokenize_corpus" and tokens is not None:
            cost = StageCost(one.stage, one.why, disk_bytes=tokens * TOKEN_BYTES)
        costs.append(cost)
    return Plan(tuple(costs), compute.price_per_gpu_hour, tuple(notes))


def _requests_cost(
    one: Pending, pending: set[str], compute: Compute, notes: list[str]
) -> tuple[StageCost, int | None]:
    """The cost of a stage that sends requests, and the tokens of all its completions."""
    before = sorted({stage.partition("@")[0] for stage in one.after} - {"prompts", "pilot"})
    try:
        with _requests(one.name, "prompts" in pending) as wanted, CompletionStore() as store:
            lookup = LookUp(wanted.requests, wanted.model, wanted.sampling, store)
            lookup.reuse(earlier_completions)
            bill = forecast_of(lookup, compute)
    except (DataError, FileNotFoundError) as error:
        notes.append(f"{one.stage}: its prompts are not known yet ({error})")
        return StageCost(one.stage, one.why, known=UNKNOWN, basis=f"{', '.join(before)} must run first"), None
    known, basis = COUNTED, bill.basis if bill.requests else ""
    if one.name == "label":
        basis = f"{basis}; clusters without a usable answer are asked again".removeprefix("; ")
    if "generator" in pending:
        known = ESTIMATED
        notes.append(f"{one.stage}: the model will be made anew; another one finds nothing of its own in the store")
    elif before:
        known = ESTIMATED
        notes.append(f"{one.stage}: counted with the rows that are here; {', '.join(before)} may change them")
    mean = bill.tokens / bill.requests if bill.requests else lookup.mean_tokens()
    total = round((bill.requests + bill.cached) * (mean or 0))
    disk = bill.tokens * SEGMENT_BYTES_PER_TOKEN + total * PARQUET_BYTES_PER_TOKEN
    return _cost_of(one, bill, disk, known, basis), total


def _cost_of(one: Pending, bill: Forecast, disk: float, known: str, basis: str) -> StageCost:
    if not bill.tokens_known and bill.requests:
        basis = f"at most: the longest that sampling allows; {basis}"
    return StageCost(
        stage=one.stage,
        why=one.why,
        prompts_new=bill.requests,
        prompts_cached=bill.cached,
        prompt_tokens=bill.prompt_tokens,
        completion_tokens=bill.tokens,
        hours=bill.instance_hours,
        gpu_hours=bill.gpu_hours,
        money=bill.money,
        disk_bytes=disk,
        known=known,
        basis=basis,
    )


@contextmanager
def _requests(stage: str, rendered: bool) -> Iterator[StageRequests]:
    """A stage's requests; generate's with prompts that are `rendered` now."""
    module = stage_module(stage, "requests")
    if stage != "generate":
        yield module.stage_requests(further=False)
        return
    prompts = stage_module("prompts", "plan").rendered_prompts() if rendered else nullcontext(None)
    with prompts as files:
        yield module.stage_requests(files or tables_in(Path("data/prompts")))


def _training_cost(one: Pending, compute: Compute) -> StageCost:
    forecast_now: Callable[[bool], TrainingForecast] = stage_module("train", "plan").training_forecast
    corpus_known = not one.after
    try:
        bill = forecast_now(corpus_known)
    except DataError:  # no corpus yet
        bill, corpus_known = forecast_now(False), False
    price = compute.price_per_gpu_hour
    return StageCost(
        stage=one.stage,
        why=one.why,
        training_tokens=bill.tokens * bill.seeds,
        hours=bill.hours,
        gpu_hours=bill.gpu_hours,
        money=bill.gpu_hours * price if bill.gpu_hours is not None and price is not None else None,
        disk_bytes=bill.disk_bytes if bill.seeds else 0.0,
        known=COUNTED if corpus_known else ESTIMATED,
        basis=f"{bill.seeds} model(s) to train; {bill.basis}",
    )


def _why(reasons: Iterable[Any]) -> str:
    """DVC's reasons in a few words: the params and files that changed."""
    names: list[str] = []
    lost = []
    for reason in reasons:
        if not isinstance(reason, dict):  # "changed command"
            names.append(str(reason).removeprefix("changed "))
            continue
        for path, state in reason.get("changed deps", {}).items():
            names += list(state) if isinstance(state, dict) else [path]
        lost += reason.get("changed outs", {})
    return f"changed: {_few(names)}" if names else f"lost: {_few(sorted(lost))} (a remote may have it)"


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

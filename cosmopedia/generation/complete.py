"""Completions for a stage: what the store has, it gives; the rest is asked of the servers, and is then in the store.

In: rendered requests, `models/generator/` and the cluster file. Out: for each request, in the order given, a
completion or a failure with its reason. Servers start only if something is missing, and not before the bill is known
and within the budget. `complete` walks over the requests several times (look up, send, hand out), so that neither
their texts nor their keys need be in memory: give it something that can be walked over again.
"""

import contextlib
import json
import os
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from stages.clusters import Serving, load_cluster
from stages.errors import ConfigError, DataError, InternalError
from stages.lineage import store_root
from stages.progress import Progress
from stages.serving.budget import NO_BUDGET, Budget, Forecast, forecast, refuse, spent, write_rate
from stages.serving.requests import Completion, Failure, Request, Sampling, completion_key, sampling_seed
from stages.serving.store import CompletionStore
from stages.settings import Params, check

if TYPE_CHECKING:
    from stages.serving.chat import ChatTokenizer
    from stages.serving.dispatcher import Job

T = TypeVar("T")

PREPARED = 64  # prompts that are tokenised together
LOOKED_UP = 1024  # keys that are looked up together
SAMPLED = 256  # completions of the store whose mean length forecasts the others'
CACHED, MISSING, TOO_LONG = 0, 1, 2


class _Manifest(Params):
    """models/generator/generator.json."""

    model: str
    revision: str
    weights: str
    quantisation: str | None
    max_length: int


@dataclass(frozen=True)
class GenerationModel:
    """The model that writes: its identity, its length limit (prompt + new tokens) and its tokenizer."""

    folder: Path
    model: str
    revision: str
    quantisation: str | None
    max_length: int

    @classmethod
    def read(cls, folder: Path | str = "models/generator") -> "GenerationModel":
        """From `generator.json`. `DataError` when it is missing or not whole."""
        path = Path(folder) / "generator.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path} is missing; run the generator stage (dvc repro generator), or dvc pull") from None
        except ValueError as error:
            raise DataError(f"{path} is no JSON ({error}); run the generator stage again") from None
        found = check(content, _Manifest, str(path))
        return cls(Path(folder), found.model, found.revision, found.quantisation, found.max_length)

    @cached_property
    def identity(self) -> str:
        """What stands for the model in a completion's key."""
        return json.dumps([self.model, self.revision, self.quantisation])

    @cached_property
    def _chat(self) -> "ChatTokenizer":
        from stages.serving.chat import ChatTokenizer

        return ChatTokenizer(self.folder)

    def render(self, prompt: str) -> str:
        """The prompt in the model's chat template, as it is sent."""
        return self._chat.render(prompt)

    def count_tokens(self, rendered: list[str]) -> list[int]:
        """Tokens of rendered prompts, special tokens that the server adds included."""
        return self._chat.count(rendered)


class _Keys:
    """The 16-byte keys of the requests, in their order, in a file without a name: 480 MB for 30 million."""

    def __init__(self) -> None:
        folder = store_root() / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def write(self, keys: list[bytes]) -> None:
        self._file.write(b"".join(keys))

    def __iter__(self) -> Iterator[str]:
        """Each key as 32 hex characters. Several walks may go on at once."""
        self._file.flush()
        at = 0
        while block := os.pread(self._file.fileno(), 16 * LOOKED_UP, at):
            at += len(block)
            for start in range(0, len(block), 16):
                yield block[start : start + 16].hex()


@dataclass
class CompletionRun:
    """The end of `complete`: counts, and the results on demand."""

    stage: str
    total: int
    cached: int = 0
    new: int = 0
    failed: int = 0
    tokens_new: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of failures
    figures: dict[str, Any] = field(default_factory=dict)  # of the sending: forecast, actual, rates
    throughput: list[dict[str, float]] = field(default_factory=list)  # points over time
    _requests: Iterable[Request] = ()
    _failures: dict[str, Failure] = field(default_factory=dict)
    _store: CompletionStore | None = None
    _keys: Iterable[str] = ()

    @property
    def results(self) -> Iterator[tuple[Request, Completion | Failure]]:
        """Each request, in the order given, with its result."""
        assert self._store is not None
        for request, key in zip(self._requests, self._keys, strict=True):
            result = self._store.get(key) or self._failures.get(key)
            if result is None:
                raise InternalError(f"{self.stage}: {request.id} has neither a completion nor a failure (key {key})")
            yield request, result

    @property
    def sent(self) -> int:
        """Requests that went to a server."""
        return self.new + self.failed - self.reasons["too_long"]

    def record(self) -> dict[str, Any]:
        """What this run sent and reused; it differs between runs of equal results."""
        return {
            "requests": self.total,
            "from_store": self.cached,
            "sent": self.sent,
            "completed": self.new,
            "failed": dict(sorted(self.reasons.items())),
            **self.figures,
        }

    def write_record(self) -> None:
        """`<store root>/runs/<stage>.json`."""
        path = store_root() / "runs" / f"{self.stage}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")


class PromptRequests:
    """Requests for prompts, `samples` each, that can be walked over again and again.

    pilot and generate both ask through this class, so that the same prompt has the same key in both.
    """

    def __init__(self, prompts: Iterable[tuple[str, str]], model: GenerationModel, seed: int, samples: int):
        self.prompts, self.model, self.seed, self.samples = prompts, model, seed, samples

    def __iter__(self) -> Iterator[Request]:
        """In the order of `prompts` (id, text); the samples of one in the order of their ids as text."""
        samples, render = sorted(range(self.samples), key=str), self.model.render
        for prompt_id, prompt in self.prompts:
            for sample in samples:
                seed = sampling_seed(self.seed, prompt_id, sample)
                yield Request(f"{prompt_id}-{sample}", prompt, seed, sample, render)


class LookUp:
    """What a run would reuse and send: a state for each request, and their keys."""

    def __init__(
        self, requests: Iterable[Request], model: GenerationModel, sampling: Sampling, store: CompletionStore
    ):
        self.requests, self.model, self.sampling, self.store = requests, model, sampling, store
        self.room = model.max_length - sampling.max_new_tokens
        if self.room <= 0:
            raise ConfigError(
                f"max_new_tokens is {sampling.max_new_tokens}, but {model.model} holds {model.max_length} tokens in"
                " all; choose a smaller max_new_tokens"
            )
        self.walk()

    def walk(self) -> None:
        """Look at every request (again)."""
        self.states, self.keys = bytearray(), _Keys()
        self.too_long: list[Failure] = []
        missing = array("Q")
        for batch in _batches(self.requests, LOOKED_UP):
            prompts = [request.prompt for request in batch]
            keys = [
                completion_key(request, self.model.identity, self.sampling, prompt)
                for request, prompt in zip(batch, prompts, strict=True)
            ]
            raw = [bytes.fromhex(key) for key in keys]
            self.keys.write(raw)
            states = [CACHED if here else MISSING for here in self.store.present(raw)]
            self._find_too_long(prompts, keys, states)
            missing.extend(int(key[:16], 16) for key, state in zip(keys, states, strict=True) if state == MISSING)
            self.states.extend(states)
        ranked = np.frombuffer(missing, np.uint64)
        ranked.sort()  # in place: eight bytes a request, and no copy
        repeated = ranked[1:][ranked[1:] == ranked[:-1]]
        self._repeated = {int(prefix) for prefix in repeated}  # of keys that are asked for more than once

    def _find_too_long(self, prompts: list[str], keys: list[str], states: list[int]) -> None:
        """Missing prompts that leave no room for `max_new_tokens` are failures, and are never sent."""
        # A token is at least a byte, so a short text needs no counting; 8 leaves room for special tokens.
        long = [n for n, p in enumerate(prompts) if states[n] == MISSING and len(p.encode()) + 8 > self.room]
        for batch in _batches(long, PREPARED):
            counts = self.model.count_tokens([prompts[number] for number in batch])
            for number, count in zip(batch, counts, strict=True):
                if count > self.room:
                    states[number] = TOO_LONG
                    detail = (
                        f"{count} prompt tokens + {self.sampling.max_new_tokens} new > {self.model.max_length} of"
                        f" {self.model.model}"
                    )
                    self.too_long.append(Failure(keys[number], "too_long", detail, 0))

    @property
    def missing(self) -> int:
        """Requests that the store has no completion for, and that can be sent."""
        return self.states.count(MISSING)

    def jobs(self) -> Iterator["Job"]:
        """What is to be sent, each key once."""
        from stages.serving.dispatcher import Job

        seen: set[str] = set()
        for request, key, state in zip(self.requests, self.keys, self.states, strict=True):
            if state == MISSING and key not in seen:
                if int(key[:16], 16) in self._repeated:
                    seen.add(key)
                yield Job(request, key)

    def forecast(self, serving: Serving) -> Forecast:
        """The bill for what is missing."""
        lengths = []
        for key, state in zip(self.keys, self.states, strict=True):
            if state == CACHED and (completion := self.store.get(key)):
                lengths.append(completion.tokens)
                if len(lengths) == SAMPLED:
                    break
        mean = sum(lengths) / len(lengths) if len(lengths) >= SAMPLED // 8 else None
        cached = self.states.count(CACHED)
        return forecast(self.missing, cached, mean, self.sampling.max_new_tokens, self.model.identity, serving)


def complete(
    stage: str,
    requests: Iterable[Request],
    model: GenerationModel,
    sampling: Sampling,
    import_from: Iterable[Path | str] = (),
    budget: Budget = NO_BUDGET,
    track: bool = False,
    keep: bool = True,
) -> CompletionRun:
    """A completion or a failure for each request.

    `import_from` are documents (data/generate/*.parquet) of an earlier run, for a clone whose store lacks them; they
    are looked at only if something is missing. With `track` MLflow records the run; with `keep` servers that took long
    to start may wait for the next stage. Raises `ConfigError` when the bill is above the budget, `ClusterError` when
    servers fail or too many requests do, and `KeyboardInterrupt` after SIGINT or SIGTERM; what was completed until
    then is in the store.
    """
    from stages.serving.fleet import release

    if iter(requests) is requests:
        requests = list(requests)
    serving = load_cluster().serving
    with CompletionStore() as store:
        found = LookUp(requests, model, sampling, store)
        if found.missing and (imported := store.import_documents(import_from)):
            print(f"{stage}: {imported} completions imported from earlier documents into the store", flush=True)
            found.walk()
        run = CompletionRun(stage, len(found.states), _requests=requests, _store=store, _keys=found.keys)
        run.cached = found.states.count(CACHED)
        run._failures = {failure.key: failure for failure in found.too_long}
        run.reasons["too_long"] = len(found.too_long)
        run.reasons += Counter()  # no zeros
        plan = found.forecast(serving)
        if run.total:
            long = f"; {len(found.too_long)} prompts too long for the model" if found.too_long else ""
            print(f"{stage}: {plan.sentence()}{long}", flush=True)
        run.figures = {"forecast": plan.metrics()}
        if found.missing:
            refuse(plan, budget)
            _send(run, found, plan, serving, budget, track, keep)
        elif not keep:
            release(stage, model, serving)
        run.failed = sum(run.reasons.values())
    return run


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _send(
    run: CompletionRun, found: LookUp, plan: Forecast, serving: Serving, budget: Budget, track: bool, keep: bool
) -> None:
    """Start the servers, send the jobs, end the servers; the store and the run's counts have the results."""
    from stages.serving.balancing import Pool
    from stages.serving.client import Identity
    from stages.serving.dispatcher import Dispatcher
    from stages.serving.fleet import fleet
    from stages.serving.monitor import Monitor

    assert run._store is not None
    model = found.model
    with _mlflow(run.stage, model, track) as record, fleet(run.stage, model, serving, keep) as servers:
        pool = Pool(servers.members, serving, found.sampling, Identity(model.model, model.revision, model.max_length))

        def stop() -> BaseException | None:
            now = time.monotonic()
            servers.demand(found.missing - dispatcher.done, lambda url: not pool.uses(url))
            return servers.tend() or spent(budget, pool.gpu_seconds(now), dispatcher.outcome.tokens)

        dispatcher = Dispatcher(
            run.stage,
            pool,
            serving,
            commit=run._store.append,
            stop=stop,
            expecting=servers.expecting,
            count_tokens=lambda prompt: model.count_tokens([prompt])[0],
            before=run.cached,
            failed_before=run.reasons,
        )
        with Progress(run.stage, found.missing, "completions") as progress:
            monitor = Monitor(run.stage, dispatcher, run.total, run.cached, plan, progress, record)
            try:
                with monitor:
                    dispatcher.run(found.jobs())
            finally:
                outcome = dispatcher.outcome
                run.new, run.tokens_new, run.reasons = outcome.new, outcome.tokens, dispatcher.reasons
                run.figures, run.throughput = monitor.figures(), monitor.throughput()
                run._failures.update((failure.key, failure) for failure in outcome.failures)
                seconds = pool.instance_seconds(time.monotonic())
                write_rate(model.identity, outcome.new, outcome.tokens, seconds, serving.gpus, monitor.utilisation)


@contextlib.contextmanager
def _mlflow(stage: str, model: GenerationModel, track: bool) -> Iterator[Any]:
    """An MLflow run, or None."""
    if not track:
        yield None
        return
    from stages.tracking import Run

    with Run(stage, {"model": model.model, "model_revision": model.revision}) as record:
        yield record

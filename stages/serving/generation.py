"""Completions for a stage: what the store has, it gives; the rest is asked of the servers, and is then in the store.

In: rendered requests, `models/generator/` and the cluster file. Out: for each request, in the order given, a
completion or a failure with its reason. Servers start only if something is missing. `complete` walks over the requests
several times (look up, send, hand out), so that their texts need not be in memory: give it something that can be
walked over again.
"""

import asyncio
import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stages.clusters import Serving, load_cluster
from stages.errors import ClusterError, ConfigError, DataError, InternalError
from stages.lineage import store_root
from stages.progress import Progress
from stages.serving.requests import Completion, Failure, Request, Sampling, completion_key, sampling_seed
from stages.serving.store import CompletionStore
from stages.settings import Params, check

if TYPE_CHECKING:
    from stages.serving.dispatcher import Job

T = TypeVar("T")
KeyOf = Callable[[Request], str]
PREPARED = 64  # prompts that are tokenised together
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
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder} holds no tokenizer: {error}; run the generator stage again") from None
        if not tokenizer.chat_template:
            raise DataError(f"{self.folder}: the tokenizer has no chat template; choose an instruction-tuned model")
        return tokenizer

    @cached_property
    def _doubled(self) -> str:
        """The start token, if template and server would both put it there; TGI adds special tokens to `inputs`."""
        tokenizer = self._tokenizer
        start = tokenizer.bos_token or ""
        return start if start and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""

    def render(self, prompt: str) -> str:
        """The prompt in the model's chat template, as it is sent."""
        turns = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(self._doubled) if self._doubled else text

    def count_tokens(self, rendered: list[str]) -> list[int]:
        """Tokens of rendered prompts, special tokens that the server adds included."""
        return [len(ids) for ids in self._tokenizer(rendered)["input_ids"]] if rendered else []


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
    retries: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # of sending, without the servers' start
    _requests: Iterable[Request] = ()
    _failures: dict[str, Failure] = field(default_factory=dict)
    _store: CompletionStore | None = None
    _key: KeyOf = lambda request: request.id

    @property
    def results(self) -> Iterator[tuple[Request, Completion | Failure]]:
        """Each request, in the order given, with its result."""
        assert self._store is not None
        for request in self._requests:
            key = self._key(request)
            result = self._store.get(key) or self._failures.get(key)
            if result is None:
                raise InternalError(f"{self.stage}: {request.id} has neither a completion nor a failure (key {key})")
            yield request, result

    @property
    def sent(self) -> int:
        """Requests that went to a server."""
        return self.new + self.failed - self.reasons["too_long"]

    def write_record(self) -> None:
        """`<store root>/runs/<stage>.json`: what this run sent and reused. Not a DVC out: it differs between runs."""
        record = {
            "requests": self.total,
            "from_store": self.cached,
            "sent": self.sent,
            "completed": self.new,
            "failed": dict(sorted(self.reasons.items())),
            "retries": dict(sorted(self.retries.items())),
            "tokens": self.tokens_new,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens_new / self.seconds, 1) if self.seconds else 0,
        }
        path = store_root() / "runs" / f"{self.stage}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")


class PromptRequests:
    """Requests for prompts, `samples` each, that can be walked over again and again.

    pilot and generate both ask through this class, so that the same prompt has the same key in both.
    """

    def __init__(self, prompts: Iterable[tuple[str, str]], model: GenerationModel, seed: int, samples: int):
        self.prompts, self.model, self.seed, self.samples = prompts, model, seed, samples

    def __iter__(self) -> Iterator[Request]:
        """In the order of `prompts` (id, text); the samples of one in the order of their ids as text."""
        samples = sorted(range(self.samples), key=str)
        for prompt_id, prompt in self.prompts:
            rendered = self.model.render(prompt)
            for sample in samples:
                yield Request(f"{prompt_id}-{sample}", rendered, sampling_seed(self.seed, prompt_id, sample), sample)


def complete(
    stage: str,
    requests: Iterable[Request],
    model: GenerationModel,
    sampling: Sampling,
    import_from: Iterable[Path | str] = (),
) -> CompletionRun:
    """A completion or a failure for each request.

    `import_from` are documents (data/generate/*.parquet) of an earlier run, for a clone whose store lacks them; they
    are looked at only if something is missing. Raises `ClusterError` when servers fail or too many requests do, and
    `KeyboardInterrupt` after SIGINT or SIGTERM; what was completed until then is in the store.
    """
    if iter(requests) is requests:
        requests = list(requests)
    serving = load_cluster().serving
    store = CompletionStore()

    def key_of(request: Request) -> str:
        return completion_key(request, model.identity, sampling)

    with store:
        states, repeated = _look_up(requests, key_of, store)
        if MISSING in states and (imported := store.import_documents(import_from)):
            print(f"{stage}: {imported} completions imported from earlier documents into the store", flush=True)
            states, repeated = _look_up(requests, key_of, store)
        run = CompletionRun(stage, len(states), _requests=requests, _store=store, _key=key_of)
        run.cached = states.count(CACHED)
        for failure in _too_long(requests, states, key_of, model, sampling):
            run._failures[failure.key] = failure
            run.reasons["too_long"] += 1
        missing = states.count(MISSING)
        if run.total:
            long = f", {run.reasons['too_long']} too long for the model" if run.reasons else ""
            print(f"{stage}: {run.total} requests, {run.cached} in the store{long}, {missing} to send", flush=True)
        if missing:
            _send(run, _jobs(requests, states, repeated, key_of, model), missing, model, sampling, serving)
        run.failed = sum(run.reasons.values())
    return run


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _look_up(requests: Iterable[Request], key_of: KeyOf, store: CompletionStore) -> tuple[bytearray, set[int]]:
    """(a byte for each request: CACHED or MISSING; the key prefixes that occur more than once among the missing)."""
    states, prefixes = bytearray(), array("Q")
    for request in requests:
        key = key_of(request)
        states.append(CACHED if key in store else MISSING)
        if states[-1] == MISSING:
            prefixes.append(int(key[:16], 16))
    found, counts = np.unique(np.array(prefixes, dtype=np.uint64), return_counts=True)
    return states, {int(prefix) for prefix in found[counts > 1]}


def _too_long(
    requests: Iterable[Request], states: bytearray, key_of: KeyOf, model: GenerationModel, sampling: Sampling
) -> Iterator[Failure]:
    """Failures for missing prompts that leave no room for `max_new_tokens`; marks them in `states`."""
    room = model.max_length - sampling.max_new_tokens
    if room <= 0:
        raise ConfigError(
            f"max_new_tokens is {sampling.max_new_tokens}, but {model.model} holds {model.max_length} tokens in all;"
            " choose a smaller max_new_tokens"
        )
    # A token is at least a byte, so a short text needs no counting; 8 leaves room for special tokens.
    long = (
        (number, request)
        for number, request in enumerate(requests)
        if states[number] == MISSING and len(request.prompt.encode()) + 8 > room
    )
    for batch in _batches(long, PREPARED):
        counts = model.count_tokens([request.prompt for _, request in batch])
        for (number, request), count in zip(batch, counts, strict=True):
            if count > room:
                states[number] = TOO_LONG
                detail = f"{count} prompt tokens + {sampling.max_new_tokens} new > {model.max_length} of {model.model}"
                yield Failure(key_of(request), "too_long", detail, 0)


def _jobs(
    requests: Iterable[Request], states: bytearray, repeated: set[int], key_of: KeyOf, model: GenerationModel
) -> Iterator["Job"]:
    """What is to be sent, each key once."""
    from stages.serving.dispatcher import Job

    seen: set[str] = set()
    missing = (request for number, request in enumerate(requests) if states[number] == MISSING)
    for batch in _batches(missing, PREPARED):
        counts = model.count_tokens([request.prompt for request in batch])
        for request, count in zip(batch, counts, strict=True):
            key = key_of(request)
            if int(key[:16], 16) in repeated:
                if key in seen:
                    continue
                seen.add(key)
            yield Job(request, key, count)


def _send(
    run: CompletionRun,
    jobs: Iterator["Job"],
    missing: int,
    model: GenerationModel,
    sampling: Sampling,
    serving: Serving,
) -> None:
    """Start the servers, send the jobs, end the servers; the store and the run's counts have the results."""
    from stages.serving.client import read_info
    from stages.serving.dispatcher import Dispatcher, Endpoint
    from stages.serving.fleet import fleet

    assert run._store is not None
    with fleet(run.stage, model.folder, model.model, model.revision, serving) as servers:
        endpoints = []
        for url, info in zip(servers.urls, asyncio.run(read_info(servers.urls)), strict=True):
            if info.model_id != model.model or (info.revision and _differ(info.revision, model.revision)):
                raise ClusterError(
                    f"{url} serves {info.model_id} at {info.revision}, but models/generator is {model.model} at"
                    f" {model.revision}; its completions would be stored under the wrong name: start the right server"
                )
            endpoints.append(Endpoint(url, info.engine, serving.concurrency))
        started = time.monotonic()
        with Progress(run.stage, missing, "completions") as progress:
            dispatcher = Dispatcher(
                run.stage,
                endpoints,
                sampling,
                serving,
                commit=run._store.append,
                progress=progress,
                lost=servers.lost,
                before=run.cached,
                failed_before=run.reasons,
            )
            try:
                dispatcher.run(jobs)
            finally:
                outcome = dispatcher.outcome
                run.seconds = time.monotonic() - started
                run.new, run.tokens_new, run.retries = outcome.new, outcome.tokens, outcome.retries
                run.reasons = dispatcher.reasons
                run._failures.update((failure.key, failure) for failure in outcome.failures)


def _differ(served: str, wanted: str) -> bool:
    """Whether two commits or checksums differ; a branch name such as `main` says nothing."""
    return len(served) >= 40 and len(wanted) >= 40 and served != wanted

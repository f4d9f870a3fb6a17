"""Sentence vectors: one text at a time on a CPU, so that a vector depends on its text alone.

The last digits of a batched forward pass move with the batch's padding and shape, and UMAP turns such digits into
other clusters. Single texts, each on one thread, run in parallel without the barriers of threads inside an operation
(16 texts/s per core, as with batches of 32). In bf16, where the processor is quick in it, they take less
time and are within a cosine of .9999 of fp32's.

An accelerator needs batches: there a text's neighbours move the last digits of its vector. Texts of like length share
a batch, so that little of it is padding, and a batch has a number of characters, not of texts. Several accelerators
have a copy of the model each.

A folder with static vectors (model2vec's layout) is read without sentence-transformers: see `static_vectors`.
"""

import importlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions, version
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal

import numpy as np

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import content_revision
from cosmopedia.corpus.static_vectors import StaticVectors
from cosmopedia.cpu_features import quick_in_bf16
from cosmopedia.records.pins import check_pin, is_local
from cosmopedia.records.reading import resolve_revision

PACKAGE = "package:"
BATCH_CHARACTERS = 1 << 18  # of an accelerator's batch, padding included: about 65,000 tokens
CHARACTERS_PER_TOKEN = 4  # of English; what is longer than `max_tokens` tokens is cut
Precision = Literal["bf16", "fp32"]


def find_model(model: str, revision: str | None) -> tuple[str, str]:
    """(what SentenceTransformer loads, the resolved revision) of `package:<import name>`, a folder or a hub id.

    A package is one that carries a model and has `get_model_path()`. `ConfigError` when the model is not available.
    """
    if model.startswith(PACKAGE):
        name = model.removeprefix(PACKAGE)
        try:
            path = importlib.import_module(name).get_model_path()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"embed.model: {model} wants an installed package {name} with get_model_path() ({error});"
                " install it, or name a folder or a hub id"
            ) from None
        return str(path), f"{name} {version(packages_distributions()[name][0])}"
    if is_local(model):
        files = sorted(p for p in Path(model).rglob("*") if p.is_file())
        if not files:
            raise ConfigError(f"embed.model: {model} is no folder with a model; correct it, or name a hub id")
        content = content_revision(files)
        check_pin(model, revision, content)
        return model, content
    return model, resolve_revision("model", model, revision)


def accelerators() -> list[str]:
    """The devices of this process that are no CPU."""
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"]) -> Precision:
    """`auto`: bf16 where there is an accelerator, or a processor that multiplies faster in it; else fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if accelerators() or quick_in_bf16() else "fp32"


def packed(texts: list[str], max_tokens: int) -> list[list[int]]:
    """The positions of the texts in batches: the longest first, in each as many as make `BATCH_CHARACTERS`."""
    widths = [min(max(len(text), 1), max_tokens * CHARACTERS_PER_TOKEN) for text in texts]
    batches: list[list[int]] = []
    room = 0
    for position in sorted(range(len(texts)), key=lambda n: (-widths[n], n)):
        if room < 1:
            batches.append([])
            room = max(BATCH_CHARACTERS // widths[position], 1)
        batches[-1].append(position)
        room -= 1
    return batches


class Encoder:
    """A sentence-transformers model, or static vectors. A context manager: torch's threads are set for its block."""

    def __init__(self, model: str, revision: str | None, max_tokens: int, precision: Precision = "fp32"):
        """`revision` pins a hub id. `ConfigError` when the model does not load or cannot read `max_tokens` tokens."""
        import torch

        path, self.revision = find_model(model, revision)
        self._torch, self.max_tokens, self._precision = torch, max_tokens, precision
        self._devices = accelerators()
        self._static = StaticVectors(Path(path), max_tokens) if StaticVectors.are_in(Path(path)) else None
        if self._static is None:
            pinned = None if model.startswith(PACKAGE) or is_local(model) else self.revision
            self._models = [self._load(model, path, pinned, device) for device in self._devices or ["cpu"]]

    def _load(self, model: str, path: str, revision: str | None, device: str) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            loaded = SentenceTransformer(path, revision=revision, device=device)
        except (OSError, ValueError) as error:
            raise ConfigError(f"embed.model: {model} does not load: {' '.join(str(error).split())[:300]}") from None
        transformer: Any = loaded[0]
        config = getattr(getattr(transformer, "auto_model", None), "config", None)
        limit = getattr(config, "max_position_embeddings", self.max_tokens)
        if self.max_tokens > limit:
            raise ConfigError(f"embed.max_tokens is {self.max_tokens}, but {model} reads at most {limit} tokens")
        loaded.max_seq_length = self.max_tokens
        if self._precision == "bf16":
            transformer.to(self._torch.bfloat16)
        return loaded.eval()

    @classmethod
    def at(cls, model: str, resolved: str, max_tokens: int, precision: Precision = "fp32") -> "Encoder":
        """The model of which `find_model` has given the revision. `DataError` when this machine has another one."""
        encoder = cls(model, resolved, max_tokens, precision)
        if encoder.revision != resolved:
            raise DataError(f"{model} is {encoder.revision} here, wanted {resolved}; install the same one")
        return encoder

    def __enter__(self) -> "Encoder":
        self._threads = self._torch.get_num_threads()
        if self._static is None:
            # What a forward pass may use: each accelerator's own copy, or the CPU's, which all threads share.
            loaded = self._models if self._devices else self._models * self._threads
            self._free: SimpleQueue[Any] = SimpleQueue()
            for model in loaded:
                self._free.put(model)
            self._pool = ThreadPoolExecutor(max_workers=len(loaded))
        self._torch.set_num_threads(1)
        return self

    def encode(self, texts: list[str]) -> Iterator[tuple[np.ndarray, int]]:
        """Blocks in the texts' order: (float32 vectors [texts, dimensions] of length 1, texts of max_tokens).

        The vector of a text without a token that has a static vector is zero.
        """
        if self._static is not None:
            blocks = [self._static.encode(texts)] if texts else []
            yield from ((_unit(means), full) for means, full in blocks)
        elif not self._devices:
            yield from self._forward_each([text] for text in texts)
        elif texts:
            batches = packed(texts, self.max_tokens)
            blocks = list(self._forward_each([texts[n] for n in batch] for batch in batches))
            order = np.argsort(np.concatenate(batches))
            yield np.concatenate([block for block, _ in blocks])[order], sum(full for _, full in blocks)

    def _forward_each(self, batches: Iterable[list[str]]) -> Iterator[tuple[np.ndarray, int]]:
        """The tokenizer stays in this thread: it is not made for several."""
        tokenize = self._models[0].preprocess
        return self._pool.map(self._forward, (tokenize(batch) for batch in batches))

    def _forward(self, features: dict[str, Any]) -> tuple[np.ndarray, int]:
        full = int((features["attention_mask"].sum(dim=1) >= self.max_tokens).sum())
        model = self._free.get()
        try:
            with self._torch.inference_mode():
                features = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in features.items()}
                features = model[0](features)
                features["token_embeddings"] = features["token_embeddings"].float()  # what follows adds them up
                for module in list(model)[1:]:
                    features = module(features)
                vectors = features["sentence_embedding"].float().cpu().numpy()
        finally:
            self._free.put(model)
        return _unit(vectors), full

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._static is None:
            self._pool.shutdown(cancel_futures=True)
        self._torch.set_num_threads(self._threads)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; one of length 0 stays as it is."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(lengths == 0, 1, lengths)).astype(np.float32)

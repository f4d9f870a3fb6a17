"""Sentence vectors: one text at a time on a CPU, so that a vector depends on its text alone.

The last digits of a batched forward pass move with the batch's padding and shape, and UMAP turns such digits into
other clusters. Single texts, each on one thread, run in parallel without the barriers of threads inside an operation
(16 texts/s per core, as with batches of 32). An accelerator needs batches: there a text's neighbours move the last
digits of its vector.
"""

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cosmopedia.errors import ConfigError, DataError
from cosmopedia.lineage import content_revision
from cosmopedia.pins import check_pin, is_local
from cosmopedia.records import resolve_revision

PACKAGE = "package:"
ACCELERATOR_BATCH = 256  # texts


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


class Encoder:
    """A sentence-transformers model. Use as a context manager: torch's threads are set for the time of the block."""

    def __init__(self, model: str, revision: str | None, max_tokens: int):
        """`revision` pins a hub id. `ConfigError` when the model does not load or cannot read `max_tokens` tokens."""
        import torch
        from sentence_transformers import SentenceTransformer

        path, self.revision = find_model(model, revision)
        pinned = None if model.startswith(PACKAGE) or is_local(model) else self.revision
        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model = SentenceTransformer(path, revision=pinned, device=self._device)
        except (OSError, ValueError) as error:
            raise ConfigError(f"embed.model: {model} does not load: {' '.join(str(error).split())[:300]}") from None
        limit = getattr(self._config(), "max_position_embeddings", max_tokens)
        if max_tokens > limit:
            raise ConfigError(f"embed.max_tokens is {max_tokens}, but {model} reads at most {limit} tokens")
        self._model.max_seq_length = self.max_tokens = max_tokens
        self._model.eval()

    @classmethod
    def at(cls, model: str, resolved: str, max_tokens: int) -> "Encoder":
        """The model of which `find_model` has given the revision. `DataError` when this machine has another one."""
        encoder = cls(model, resolved, max_tokens)
        if encoder.revision != resolved:
            raise DataError(f"{model} is {encoder.revision} here, wanted {resolved}; install the same one")
        return encoder

    def _config(self) -> Any:
        transformer: Any = self._model[0]
        return getattr(getattr(transformer, "auto_model", None), "config", None)

    def __enter__(self) -> "Encoder":
        self._threads = self._torch.get_num_threads()
        on_cpu = self._device == "cpu"
        self.batch = 1 if on_cpu else ACCELERATOR_BATCH
        self._pool = ThreadPoolExecutor(max_workers=self._threads if on_cpu else 1)
        self._torch.set_num_threads(1)
        return self

    def encode(self, texts: list[str]) -> Iterator[tuple[np.ndarray, int]]:
        """Blocks in the texts' order: (float32 vectors [texts, dimensions] of length 1, texts of max_tokens)."""
        parts = (texts[i : i + self.batch] for i in range(0, len(texts), self.batch))
        yield from self._pool.map(self._forward, [self._model.preprocess(part) for part in parts])

    def _forward(self, features: dict[str, Any]) -> tuple[np.ndarray, int]:
        with self._torch.inference_mode():
            on_device = {k: v.to(self._device) if hasattr(v, "to") else v for k, v in features.items()}
            vectors = self._model(on_device)["sentence_embedding"].float().cpu().numpy().astype(np.float64)
        full = int((features["attention_mask"].sum(dim=1) >= self.max_tokens).sum())
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), full

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pool.shutdown(cancel_futures=True)
        self._torch.set_num_threads(self._threads)

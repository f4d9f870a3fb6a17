"""Static word vectors, as model2vec writes them: a text's vector is the mean of its tokens' vectors.

A folder with `model.safetensors` (a matrix `embeddings`; `weights`, one per token; `mapping`, from a token to its row)
and `tokenizer.json`. Thousands of texts per CPU second, and a vector depends on its text alone.
"""

from pathlib import Path

import numpy as np

from cosmopedia.core.errors import ConfigError

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


class StaticVectors:
    """The vectors and the tokenizer of a folder."""

    def __init__(self, folder: Path, max_tokens: int):
        """`ConfigError` when the folder's vectors and its tokenizer do not belong together."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._max_tokens = max_tokens
        vocabulary = self._tokenizer.get_vocab()
        self._unknown = vocabulary.get(getattr(self._tokenizer.model, "unk_token", None))
        tensors = load_file(folder / WEIGHTS)
        rows, known = len(tensors["embeddings"]), max(vocabulary.values()) + 1
        self._vectors = tensors["embeddings"].astype(np.float32)
        self._mapping = tensors.get("mapping", np.arange(rows))
        self._weights = tensors.get("weights", np.ones(known)).astype(np.float32)
        if known > min(len(self._mapping), len(self._weights)) or self._mapping.max() >= rows:
            raise ConfigError(
                f"embed.model: {folder / WEIGHTS} has vectors for {len(self._mapping)} tokens, but"
                f" {folder / TOKENIZER} has {known}; take both files from the same model"
            )

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether a folder has static vectors."""
        from safetensors import safe_open

        if not all((folder / name).is_file() for name in (WEIGHTS, TOKENIZER)):
            return False
        with safe_open(folder / WEIGHTS, "numpy") as tensors:
            return "embeddings" in tensors.keys()  # noqa: SIM118 (it is no mapping)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """(mean vectors [texts, dimensions], texts of `max_tokens`). A text without known tokens has a vector of 0."""
        means, full = np.zeros((len(texts), self._vectors.shape[1]), np.float32), 0
        for number, encoding in enumerate(self._tokenizer.encode_batch(texts, add_special_tokens=False)):
            tokens = [token for token in encoding.ids if token != self._unknown][: self._max_tokens]
            full += len(tokens) == self._max_tokens
            if tokens:
                weighted = self._vectors[self._mapping[tokens]] * self._weights[tokens, None]
                means[number] = weighted.mean(axis=0)
        return means, full

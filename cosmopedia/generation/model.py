"""The generation model as a client sees it: what it is called, how long its texts may be, its chat template."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import Params, check

if TYPE_CHECKING:
    from cosmopedia.generation.chat import ChatTokenizer


class _Manifest(Params):
    """models/generator/generator.json."""

    model: str
    revision: str
    weights: Literal["hub", "folder", "local"]
    path: str | None = None  # of the folder
    quantisation: str | None
    max_length: int
    system_prompt: str | None = None


@dataclass(frozen=True)
class GenerationModel:
    """The model that writes: its identity, its length limit (prompt + new tokens) and its tokenizer."""

    folder: Path
    model: str
    revision: str
    quantisation: str | None
    max_length: int
    loaded_from: str  # what an engine is given: the hub id, or the path of a folder
    pinned: str | None  # the revision that it is given with a hub id
    system_prompt: str | None = None  # in front of every prompt; part of the rendered prompt, and so of the key

    @classmethod
    def read(cls, folder: Path | str = "models/generator") -> "GenerationModel":
        """From `generator.json`. `DataError` when it is missing or broken."""
        path = Path(folder) / "generator.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path} is missing; run the generator stage (dvc repro generator), or dvc pull") from None
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); run the generator stage again") from None
        manifest = check(content, _Manifest, str(path))
        hub = manifest.weights == "hub"
        return cls(
            folder=Path(folder),
            model=manifest.model,
            revision=manifest.revision,
            quantisation=manifest.quantisation,
            max_length=manifest.max_length,
            loaded_from=manifest.model if hub else str(Path(manifest.path or folder).resolve()),
            pinned=manifest.revision if hub else None,
            system_prompt=manifest.system_prompt,
        )

    @cached_property
    def identity(self) -> str:
        """What names the model in a completion's key."""
        return json.dumps([self.model, self.revision, self.quantisation])

    @cached_property
    def _chat(self) -> "ChatTokenizer":
        from cosmopedia.generation.chat import ChatTokenizer

        return ChatTokenizer(self.folder)

    def render(self, prompt: str) -> str:
        """The prompt in the model's chat template, as it is sent."""
        return self._chat.render(prompt, self.system_prompt)

    def count_tokens(self, rendered: list[str]) -> list[int]:
        """Tokens of rendered prompts, including the special tokens that the server adds."""
        return self._chat.count(rendered)

    def count_text(self, text: str) -> int:
        """Tokens of a text, no special ones added."""
        return self._chat.count_text(text)

    @property
    def opens_thought(self) -> bool:
        """Whether the chat template ends in `<think>`, so that what the model writes begins inside a thought."""
        return self._chat.opens_thought

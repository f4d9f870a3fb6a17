"""The generation model's tokenizer, as far as a client needs it: the chat template, and how long a prompt is.

In: a model folder's tokenizer.json, tokenizer_config.json and chat_template.jinja, as `save_pretrained` writes them.
transformers does the same and more; it takes five times as long per prompt and 20 MB more memory, in a process that
renders each of 30 million prompts and never sees a tensor. A test compares the two.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from cosmopedia.core.errors import DataError

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTokenizer:
    """Renders and counts prompts. `DataError` when the folder holds no fast tokenizer or no chat template."""

    def __init__(self, folder: Path):
        self.folder = folder
        config = self._json("tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise DataError(f"{folder} holds no tokenizer: {error}; run the generator stage again") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        tokens = {**self._json("special_tokens_map.json"), **config}
        special = {name: _content(tokens[name]) for name in SPECIAL if tokens.get(name) is not None}
        try:
            self._render = _function_of(self._template(config), special)
        except TemplateError as error:
            raise DataError(f"{folder}: the chat template is not a Jinja template: {error}") from None
        # A start token that the server adds too must not be sent.
        start = special.get("bos_token", "")
        added = bool(start) and self._tokenizer.encode("").ids[:1] == [self._tokenizer.token_to_id(start)]
        self._added_start = start if added else ""

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); run the generator stage again") from None
        return content if isinstance(content, dict) else {}

    def _template(self, config: dict[str, Any]) -> str:
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8-sig")
        template = config.get("chat_template")
        if isinstance(template, list):  # several, with names
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not template:
            raise DataError(f"{self.folder}: the tokenizer has no chat template; choose an instruction-tuned model")
        return template

    def render(self, prompt: str, system_prompt: str | None = None) -> str:
        """One user turn in the chat template, after a system prompt if there is one, up to where the model's answer
        begins.

        Without the start token if the server adds it: it puts special tokens around what it is sent.
        """
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        turns = [*system, {"role": "user", "content": prompt}]
        try:
            text = self._render(turns)
        except TemplateError as error:
            turn = "a system prompt (generator.system_prompt) and a user's turn" if system else "a user's turn"
            raise DataError(f"{self.folder}: the chat template refuses {turn}: {error}") from None
        return text.removeprefix(self._added_start)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether a rendered prompt ends in `<think>`."""
        return self.render("x").rstrip().endswith("<think>")

    def count(self, rendered: list[str]) -> list[int]:
        """Tokens of rendered prompts, including the special tokens that the server adds."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(rendered)]

    def count_text(self, text: str) -> int:
        """Tokens of a text, no special ones added."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _function_of(source: str, special: dict[str, str]) -> Callable[[list[dict[str, str]]], str]:
    """The template as a function of the messages.

    It becomes a macro, because making a context for each prompt would take most of the time. `+` keeps the line ends
    next to the macro's own tags; the last line end is dropped, as Jinja does with a template's.
    """
    macro = "{% macro chat(messages) +%}" + source.removesuffix("\n") + "{%+ endmacro %}"
    variables = {**special, "tools": None, "documents": None, "add_generation_prompt": True}
    return _environment().from_string(macro).make_module(variables).chat  # type: ignore[attr-defined]


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the model wrote: renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates rely on: transformers' own settings."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)

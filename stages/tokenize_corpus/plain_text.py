"""A tokenizer.json made to read documents as plain text: what a document spells out never becomes a control token.

Added tokens are matched in the raw text before the model sees it, and `encode_special_tokens` spares only those that
are flagged as special. A Unigram vocabulary lists `</s>` as a piece like any other, and a word-level model finds it as
a word. So control tokens are taken out of the file: of the list of added tokens, and of the model. All ids stay.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# An added token of these characters that no file calls special is text: runs of blanks (GPT-NeoX), words of a field.
TEXT = re.compile(r"[\w\s\u2581]+")
# Byte pieces of a Unigram model cannot be renamed, because the fallback finds them by name; this cuts "<0x0A>" in two.
BYTE_NAME = {"Regex": "(?<=<)(?=0x[0-9A-F]{2}>)"}
CUT_BYTE_NAMES = {"type": "Split", "pattern": BYTE_NAME, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True)
class PlainText:
    """A tokenizer for plain text, and the ids to look for in what it gives."""

    path: Path  # a tokenizer.json
    control: tuple[int, ...]  # ids that no document may yield
    unknown: int | None  # the id of what the vocabulary lacks; None: the model has no such token


def write_plain_text(tokenizer: Tokenizer, folder: Path, eos: int, path: Path) -> PlainText:
    """Write the plain-text form of the tokenizer in `folder` to `path`.

    Control tokens are all added tokens and all tokens that tokenizer_config.json or special_tokens_map.json names,
    except the unknown token, single characters, and unflagged ones made of letters, digits and blanks. Of these,
    unflagged runs of blanks stay added tokens; the others are left to the model.
    """
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = described["model"]
    added = tokenizer.get_added_tokens_decoder()
    named = [*_named_tokens(folder), *((token.content, token.special) for token in added.values())]
    flagged = {name for name, special in named if special}
    blanks = {
        token.content: number
        for number, token in added.items()
        if token.content.isspace() and token.content not in flagged
    }
    unknown = _unknown(model)
    control = {
        name
        for name, _ in named
        if name != unknown and len(name) > 1 and (name in flagged or not TEXT.fullmatch(name))
    }
    _remove(model, control)
    for name, number in blanks.items():  # else the library would number them anew, after the ids that are left
        _insert(model, name, number)
    if model.get("byte_fallback") and (_is_unigram(model) or model.get("ignore_merges")):
        first = [described["pre_tokenizer"]] if described.get("pre_tokenizer") else []
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*first, CUT_BYTE_NAMES]}
    described |= {"truncation": None, "padding": None, "post_processor": None}
    described["added_tokens"] = [token for token in described.get("added_tokens") or [] if token["content"] in blanks]
    if "dropout" in model:
        model["dropout"] = None  # it would draw other ids every time
    path.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    ids = {tokenizer.token_to_id(name) for name in control} - {None}
    return PlainText(path, tuple(sorted({*ids, eos})), _unknown_id(model))


def _named_tokens(folder: Path) -> Iterator[tuple[str, bool]]:
    """(token, whether it is special) of all tokens that the files next to a tokenizer.json name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            for key, value in json.loads((folder / name).read_text(encoding="utf-8-sig")).items():
                if key.endswith("_token"):
                    values = [value]
                elif key.endswith("_special_tokens") or key == "added_tokens_decoder":
                    values = list(value.values() if isinstance(value, dict) else value or [])
                else:
                    continue
                for entry in values:  # a name, or a dict of its content and flags
                    content = entry.get("content") if isinstance(entry, dict) else entry
                    if isinstance(content, str) and content:
                        yield content, key != "added_tokens_decoder" or bool(entry.get("special"))


def _is_unigram(model: dict[str, Any]) -> bool:
    return isinstance(model["vocab"], list)


def _unknown(model: dict[str, Any]) -> str | None:
    if _is_unigram(model):
        return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _unknown_id(model: dict[str, Any]) -> int | None:
    return model["unk_id"] if _is_unigram(model) else model["vocab"].get(model.get("unk_token"))


def _remove(model: dict[str, Any], names: set[str]) -> None:
    """Take tokens out of a model; the others keep their ids."""
    if _is_unigram(model):  # the position is the id; no text matches an empty piece
        unknown = model["unk_id"]
        model["vocab"] = [
            ["" if piece in names or number == unknown else piece, score]
            for number, (piece, score) in enumerate(model["vocab"])
        ]
        return
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in names}
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if names.isdisjoint((left, right, left + right.removeprefix(prefix)))
        ]


def _insert(model: dict[str, Any], name: str, number: int) -> None:
    if not _is_unigram(model):
        model["vocab"][name] = number
        return
    model["vocab"] += [["", 0.0]] * (number + 1 - len(model["vocab"]))
    model["vocab"][number] = [name, model["vocab"][number][1]]

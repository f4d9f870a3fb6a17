"""The tokenizer's files: found, copied next to the shards, and made to read plain text."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import content_revision
from cosmopedia.records.pins import all_files, check_pin, split_pin
from stages.tokenize_corpus.plain_text import PlainText, write_plain_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer in the stage's folder: its file, its end-of-text token, and the size of its numbers."""

    path: Path
    eos_token: str
    eos: int
    vocab_size: int  # greatest id + 1
    token_bytes: int  # 2 or 4, by the greatest id: a vocabulary may have gaps
    plain: PlainText  # what documents are encoded with


def copy_tokenizer(source: str, folder: Path, scratch: Path) -> TokenizerFiles:
    """Bring a tokenizer into a folder: "generator", a folder, a tokenizer.json, or a hub id ("id@revision").

    The form that reads plain text goes to `scratch`. The end-of-text token is the one in tokenizer_config.json.
    """
    for path in find_tokenizer("models/generator" if source == "generator" else source):
        shutil.copyfile(path, folder / path.name)
    config = folder / "tokenizer_config.json"
    try:
        entry = json.loads(config.read_text(encoding="utf-8-sig")).get("eos_token") if config.is_file() else None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"tokenizer {source}: not readable ({error}); give a fast tokenizer's files") from None
    eos_token = entry.get("content") if isinstance(entry, dict) else entry
    eos = tokenizer.token_to_id(eos_token) if isinstance(eos_token, str) else None
    if eos is None:
        raise DataError(f"tokenizer {source}: tokenizer_config.json names no eos_token of its vocabulary ({entry!r})")
    size = max(tokenizer.get_vocab().values()) + 1
    token_bytes = 2 if size <= 2**16 else 4
    plain = write_plain_text(tokenizer, folder, eos, scratch / "plain_text.json")
    return TokenizerFiles(folder / "tokenizer.json", cast(str, eos_token), eos, size, token_bytes, plain)


def find_tokenizer(source: str) -> list[Path]:
    """The files of a tokenizer: those of a folder, of the folder of a tokenizer.json, or of a hub repository."""
    name, pin = split_pin(source)
    path = Path(name)
    if path.exists():
        check_pin(name, pin, content_revision(all_files(name)))
        return _tokenizer_files(path)
    if source.startswith((".", "/")) or source.endswith(".json") or source.startswith("models/"):
        raise DataError(
            f"tokenizer {source} is missing; run the stage that writes it, or set tokenize_corpus.tokenizer"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from cosmopedia.records.reading import resolve_revision

    hub_id, _, revision = source.partition("@")
    commit = resolve_revision("model", hub_id, revision or None)
    try:
        snapshot = snapshot_download(hub_id, revision=commit, allow_patterns=list(TOKENIZER_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {source} is not available from the hub ({type(error).__name__})") from None
    return _tokenizer_files(Path(snapshot))


def _tokenizer_files(path: Path) -> list[Path]:
    folder = path.parent if path.is_file() else path
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"{folder}/tokenizer.json is missing; run the generator stage, or set tokenize_corpus.tokenizer"
        )
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]

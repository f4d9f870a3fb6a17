"""Small tokenizers of the shapes that models have, as Hugging Face files, trained on the spot.

Each has the control tokens `</s>` (its end of text), `<tool_call>` and `<|fim_prefix|>` as added tokens that no flag
calls special.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONTROL = ("</s>", "<tool_call>", "<|fim_prefix|>")
BLANKS = "    "  # an added token that is text, as GPT-NeoX and Phi have for indented code
TEXTS = [
    "The press of the air at sea level is 1013 hPa; on a mountain it's less, so water boils at 90 or 80 degrees.",
    "It wasn't the first time that she'd seen 1,234 of them (\"all at once\"), nor the last: they'll come again.",
    "def area(r):\n    return 3.14159 * r ** 2\n\n\nprint(area(2))  # <b>12.56636</b>",
    "Der Bär läuft über die Brücke; naïve Leser hören ihn.\nВода кипит при ста градусах. 水は百度で沸く。",
] * 3


def byte_level() -> dict[str, Any]:
    """GPT-2's shape, with an added token for blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*CONTROL, BLANKS)])
    return json.loads(tokenizer.to_str())


def unigram() -> dict[str, Any]:
    """T5's and XLM-R's shape: the control tokens are pieces of the vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", *CONTROL]
    alphabet = sorted({*"".join(TEXTS), *map(chr, range(33, 127)), "\u2581"} - {" "})
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    described = json.loads(tokenizer.to_str())
    known = {piece for piece, _ in described["model"]["vocab"]}
    described["model"]["vocab"] += [[character, -12.0] for character in alphabet if character not in known]
    return described


def sentencepiece_like() -> dict[str, Any]:
    """Llama 2's shape: a blank is prepended, the model sees the whole text as one word, byte fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", *CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = None
    described["added_tokens"] = described["added_tokens"][: 1 + len(CONTROL)]
    return described


def word_piece() -> dict[str, Any]:
    """BERT's shape, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", *CONTROL], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return json.loads(tokenizer.to_str())


def with_gaps() -> dict[str, Any]:
    """A few hundred tokens whose ids go beyond 65,536."""
    described = byte_level()
    model, controls = described["model"], [token["content"] for token in described["added_tokens"]]
    model["vocab"] = {token: number * 211 for token, number in model["vocab"].items()}
    beyond = max(model["vocab"].values()) + 1
    model["vocab"] |= {token: beyond + number for number, token in enumerate(controls)}
    described["added_tokens"] = [
        token | {"id": model["vocab"][token["content"]]} for token in described["added_tokens"]
    ]
    return described


SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    shape.__name__: shape for shape in (byte_level, unigram, sentencepiece_like, word_piece, with_gaps)
}


def save(described: dict[str, Any], folder: Path) -> Tokenizer:
    """Write a tokenizer's files, no token of which is flagged as special; returns the tokenizer."""
    for token in described["added_tokens"]:
        token["special"] = False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")
    return Tokenizer.from_file(str(folder / "tokenizer.json"))

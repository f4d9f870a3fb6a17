"""Small tokenizers of the kinds that models have, trained on a few sentences, for tests of how texts are encoded."""

from pathlib import Path

TEXT = [
    "Question: What do plants take in? Answer: light and water, which they turn into sugar.",
    "Question: What is ice? Answer: frozen water. It is lighter than water, and so it floats on a lake.",
    "He ties his shoes and then he goes for a run by the lake. She waits for the kettle to boil.",
    "Plants need light. Salt is a mineral, a whale is a mammal, and the moon moves the tides of the sea.",
]
EOS, BOS = "</s>", "<s>"


def write_metaspace(folder: Path) -> int:
    """BPE as Llama 2 has it: a space before every text, spaces as ▁, unknown characters as bytes, `<s>` in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    # Words by themselves: BPE without a pre-tokenizer would otherwise learn whole sentences.
    tokenizer.train_from_iterator([word for text in TEXT for word in text.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return _save(tokenizer, folder)


def write_unigram(folder: Path) -> int:
    """Unigram with Metaspace, as T5 has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", BOS, EOS]
    alphabet = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?▁\n")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _save(tokenizer, folder)


def write_byte_level(folder: Path) -> int:
    """Byte-level BPE with merges, as GPT-2 has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _save(tokenizer, folder)


KINDS = {"byte-level": write_byte_level, "sentencepiece BPE": write_metaspace, "Unigram": write_unigram}


def _save(tokenizer, folder: Path) -> int:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token="<unk>")
    fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()

"""A Llama of a few thousand weights and a byte-level tokenizer, for tests of what happens to a trained model."""

import json
from pathlib import Path
from typing import Any

EOS = "<|endoftext|>"


def write_tokenizer(folder: Path, **changes: object) -> int:
    """A tokenizer of single bytes and an end-of-text token; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {EOS: 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, model_input_names=names, **changes)
    fast.save_pretrained(folder)
    return len(vocabulary)


def tiny_llama(seed: int, **shape: Any) -> Any:
    """A transformers Llama of random weights; `shape` is what the test cares about."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{"num_hidden_layers": 2, "tie_word_embeddings": True, **shape})).eval()


def write_model(folder: Path, vocabulary: int, seed: int = 0) -> None:
    """Random weights, large enough that scores differ."""
    tiny_llama(
        seed,
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
    ).save_pretrained(folder)


def write_training(folder: Path, vocabulary: int) -> None:
    """`training.json` as the train stage writes it."""
    architecture = {"layers": 2, "heads": 2, "kv_heads": 2, "width": 16}
    facts = {
        "backend": "transformers",
        "parameters": 6000,
        "vocabulary": vocabulary,
        "steps": 3,
        "tokens": 1000,
        "epochs": 1.5,
        "train_loss": 2.0,
    }
    facts |= {"precision": "fp32", "validation_loss": None, "validation_perplexity": None, "documents": 4}
    facts |= {"dataset_hash": "d" * 64, "recipe_hash": "r" * 32, "corpus_tokens": 700}
    (folder / "training.json").write_text(
        json.dumps(facts | {"recipe": {"sequence": 16, "seed": 1, "architecture": architecture}})
    )

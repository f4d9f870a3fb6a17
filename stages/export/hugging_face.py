"""A Hugging Face folder from a trained model and the corpus's tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from cosmopedia.core.errors import DataError
from cosmopedia.lean_imports import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_tokenizer(folder: Path, vocabulary: int) -> "PreTrainedTokenizerBase":
    """The tokenizer that made the corpus, without a chat template: the model is no chat model."""
    import_transformers()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no tokenizer: {' '.join(str(error).split())[:200]}; repeat tokenize_corpus"
        ) from None
    if (size := max(tokenizer.get_vocab().values()) + 1) != vocabulary:
        raise DataError(
            f"{folder}: the tokenizer has {size} tokens, but models/train was trained with {vocabulary};"
            " repeat tokenize_corpus and train"
        )
    tokenizer.chat_template = None
    return tokenizer


def write_model(trained: Path, tokenizer: "PreTrainedTokenizerBase", out: Path) -> int:
    """Write weights, configuration and tokenizer to `out`; returns the number of parameters."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(trained, dtype="auto")
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.update({"eos_token_id": tokenizer.eos_token_id, "use_cache": True})
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return model.num_parameters()

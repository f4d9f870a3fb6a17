"""transformers is imported without packages for other tasks, and nobody else misses them."""

import importlib.util
import json  # a package of Python's own stands for one that is hidden
import subprocess
import sys

import pytest

from cosmopedia.lean_imports import hidden


def test_a_package_is_hidden_in_the_block_alone() -> None:
    with pytest.raises(ZeroDivisionError), hidden(("json", "wave")):
        assert importlib.util.find_spec("json") is None is importlib.util.find_spec("wave")
        with pytest.raises(ImportError):
            import wave
        _ = 1 / 0
    assert sys.modules["json"] is json
    import wave

    assert wave.open


@pytest.mark.slow
def test_a_model_is_made_and_writes_without_them() -> None:
    program = """
import sys
from cosmopedia.lean_imports import UNUSED, import_transformers
import_transformers()
from transformers import LlamaConfig, LlamaForCausalLM
import torch
config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
ids = LlamaForCausalLM(config).generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
print(ids.shape[1], *sorted(set(UNUSED) & sys.modules.keys()))
import boto3
print(boto3.__name__)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["5", "boto3"]

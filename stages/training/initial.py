"""The weights that training begins from: a function of (seed, name of the weight), the same for every trainer.

Neither the trainer nor the number of processes, tensor-parallel ranks or GPUs changes a value, so that two trainers,
or one trainer on two layouts, begin from the same model.
"""

import torch

from stages.draws import draw_u64
from stages.training.recipe import Architecture

STD = 0.02  # of every matrix: transformers' initializer_range for Llama


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every weight of the Llama by its name in transformers, with its shape [out, in]; no tied output head."""
    width, inner = architecture.width, architecture.intermediate
    kv = width // architecture.heads * architecture.kv_heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (architecture.vocabulary, width)}
    for layer in range(architecture.layers):
        name = f"model.layers.{layer}"
        found |= {
            f"{name}.input_layernorm.weight": (width,),
            f"{name}.self_attn.q_proj.weight": (width, width),
            f"{name}.self_attn.k_proj.weight": (kv, width),
            f"{name}.self_attn.v_proj.weight": (kv, width),
            f"{name}.self_attn.o_proj.weight": (width, width),
            f"{name}.post_attention_layernorm.weight": (width,),
            f"{name}.mlp.gate_proj.weight": (inner, width),
            f"{name}.mlp.up_proj.weight": (inner, width),
            f"{name}.mlp.down_proj.weight": (width, inner),
        }
    found["model.norm.weight"] = (width,)
    if not architecture.tied_embeddings:
        found["lm_head.weight"] = (architecture.vocabulary, width)
    return found


def initial_weight(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight of `shapes` before the first step, in fp32 on the CPU: ones for a norm, else normal with `STD`."""
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(draw_u64(seed, "train.initial", name) >> 1)
    return torch.empty(shape).normal_(0.0, STD, generator=generator)

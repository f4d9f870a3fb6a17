"""The weights that training begins from: a function of (seed, name of the weight), the same for every trainer.

Neither the trainer nor the number of processes, tensor-parallel ranks or GPUs changes a value: two trainers, or one
trainer on two layouts, begin from the same model.
"""

from typing import TYPE_CHECKING

import torch

from cosmopedia.core.rng import draw_u64
from stages.train.recipe import Architecture, Recipe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

STD = 0.02  # of every matrix: transformers' initializer_range for Llama


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape [out, in] of every weight of the Llama, by its name in transformers; no tied output head."""
    width, inner = architecture.width, architecture.intermediate
    kv = width // architecture.heads * architecture.kv_heads
    weights: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (architecture.vocabulary, width)}
    for layer in range(architecture.layers):
        name = f"model.layers.{layer}"
        weights |= {
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
    weights["model.norm.weight"] = (width,)
    if not architecture.tied_embeddings:
        weights["lm_head.weight"] = (architecture.vocabulary, width)
    return weights


def initial_weight(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight of `shapes` before the first step, in fp32 on the CPU: ones for a norm, else normal with `STD`."""
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(draw_u64(seed, "train.initial", name) >> 1)
    return torch.empty(shape).normal_(0.0, STD, generator=generator)


def new_model(recipe: Recipe, eos: int) -> "LlamaForCausalLM":
    """A Llama with the recipe's initial weights; `eos` is the id of the end-of-text token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = recipe.architecture
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_positions,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=None,  # type: ignore[arg-type]
        eos_token_id=eos,
        pad_token_id=None,
        use_cache=False,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    weights = {name: initial_weight(recipe.seed, name, size) for name, size in shapes(shape).items()}
    model.load_state_dict(weights, strict=not shape.tied_embeddings)
    return model

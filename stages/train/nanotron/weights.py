"""A Llama's weights under nanotron's names and shapes, and under transformers'.

nanotron keeps q, k and v in one matrix (`qkv_proj`: q's rows, then k's, then v's) and gate and up in another
(`gate_up_proj`). Its rotary positions rotate neighbouring rows of a head (0 and 1, 2 and 3, ...), transformers' rotate
a row of the first half with one of the second, so the rows of q and k change their order. A checkpoint has a file per
weight and tensor-parallel rank, whose metadata says which slices of the whole weight it holds.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cosmopedia.core.errors import DataError
from stages.train.init_weights import shapes
from stages.train.recipe import Architecture

LAYER = re.compile(r"model\.decoder\.(\d+)\.pp_block\.(.+)\.weight")
PLAIN = {
    "model.token_position_embeddings.pp_block.token_embedding.weight": "model.embed_tokens.weight",
    "model.final_layer_norm.pp_block.weight": "model.norm.weight",
    "model.lm_head.pp_block.weight": "lm_head.weight",
}
IN_LAYER = {
    "input_layernorm": ["input_layernorm"],
    "attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.o_proj": ["self_attn.o_proj"],
    "post_attention_layernorm": ["post_attention_layernorm"],
    "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down_proj": ["mlp.down_proj"],
}


def parts_of(name: str) -> list[str]:
    """transformers' names of the weights that make up nanotron's weight `name`, in the order of its rows."""
    if name in PLAIN:
        return [PLAIN[name]]
    match = LAYER.fullmatch(name)
    if match is None or match[2] not in IN_LAYER:
        raise ValueError(f"{name} is no weight of nanotron's Llama")
    return [f"model.layers.{match[1]}.{part}.weight" for part in IN_LAYER[match[2]]]


def names_of(architecture: Architecture) -> Iterator[str]:
    """nanotron's names of all weights; without a tied output head."""
    for name, (part) in PLAIN.items():
        if part != "lm_head.weight" or not architecture.tied_embeddings:
            yield name
    for layer in range(architecture.layers):
        yield from (f"model.decoder.{layer}.pp_block.{part}.weight" for part in IN_LAYER)


def _reordered(weight: torch.Tensor, heads: int, inner: tuple[int, int]) -> torch.Tensor:
    """The rows of each head, viewed as `inner`, transposed."""
    return weight.view(heads, *inner, -1).transpose(1, 2).reshape(weight.shape)


def _heads(name: str, architecture: Architecture) -> int:
    """The number of heads whose rows change their order; 0 for a weight whose rows stay."""
    return {"q_proj": architecture.heads, "k_proj": architecture.kv_heads}.get(name.split(".")[-2], 0)


def to_nanotron(name: str, weight: Callable[[str], torch.Tensor], architecture: Architecture) -> torch.Tensor:
    """nanotron's whole weight `name` from transformers' weights, which `weight` gives by name."""
    half = architecture.width // architecture.heads // 2
    rows = []
    for part in parts_of(name):
        heads = _heads(part, architecture)
        rows.append(_reordered(weight(part), heads, (2, half)) if heads else weight(part))
    return torch.cat(rows)


def to_transformers(name: str, weight: torch.Tensor, architecture: Architecture) -> dict[str, torch.Tensor]:
    """transformers' weights, by name, that nanotron's whole weight `name` is made of."""
    half = architecture.width // architecture.heads // 2
    parts, sizes = parts_of(name), shapes(architecture)
    weights = {}
    for part, rows in zip(parts, weight.split([sizes[p][0] for p in parts]), strict=True):
        heads = _heads(part, architecture)
        weights[part] = (_reordered(rows, heads, (half, 2)) if heads else rows).contiguous()
    return weights


def _slices(text: str) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """(slices of the shard, slices of the whole) as nanotron writes them: `a,b,step|...#a,b,step|...;...`."""

    def one(side: str) -> tuple[slice, ...]:
        bounds = ([None if x == "None" else int(x) for x in s.split(",")] for s in side.split("|"))
        return tuple(slice(*b) for b in bounds)

    pairs = (pair.split("#") for pair in text.split(";"))
    return [(one(local), one(whole)) for local, whole in pairs]


Slices = list[tuple[tuple[slice, ...], tuple[slice, ...]]]


def files_of(checkpoint: Path, name: str) -> list[Path]:
    """The files of a weight in a checkpoint, one per tensor-parallel rank. `DataError` when there is none."""
    *folders, last = name.split(".")
    folder = checkpoint.joinpath("model", *folders)
    files = sorted(folder.glob(f"model_{last}*.safetensors"))
    if not files:
        raise DataError(f"{folder} holds no {last}; the checkpoint is not whole: remove {checkpoint} and train again")
    return files


def shards_of(checkpoint: Path, name: str) -> Iterator[tuple[int, list[int], Slices]]:
    """(tensor-parallel rank, shape of the whole weight, slices of the rank and of the whole) of each file of a weight.

    A weight that every rank has as a whole comes once, without slices.
    """
    for path in files_of(checkpoint, name):
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if "local_global_slices_pairs" not in facts:
                yield 0, list(file.get_slice("data").get_shape()), []
                return
        rank = re.search(r"_tp-rank-(\d+)-of-", path.name)
        assert rank is not None, path
        yield int(rank[1]), _shape(facts), _slices(facts["local_global_slices_pairs"])


def _shape(facts: dict[str, str]) -> list[int]:
    """The shape of the whole weight in a shard's metadata: "(64, 32)"."""
    return [int(size) for size in facts["unsharded_shape"].strip("()").split(",") if size.strip()]


def read_weight(checkpoint: Path, name: str) -> torch.Tensor:
    """A whole weight of a nanotron checkpoint, joined from its shards. `DataError` when a part is missing."""
    whole: torch.Tensor | None = None
    filled, files = 0, files_of(checkpoint, name)
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                data, facts = file.get_tensor("data"), file.metadata() or {}
        except SafetensorError as error:
            raise DataError(f"{path} is damaged: {error}; remove {checkpoint} and train again") from None
        if "local_global_slices_pairs" not in facts:
            return data
        if whole is None:
            whole = torch.empty(_shape(facts), dtype=data.dtype)
        for local, target in _slices(facts["local_global_slices_pairs"]):
            whole[target] = data[local]
            filled += data[local].numel()
    assert whole is not None
    if filled != whole.numel():
        raise DataError(
            f"{files[0].parent}: {len(files)} shard(s) hold {filled} of {whole.numel()} values of {name}; a shard is"
            f" missing: remove {checkpoint} and train again"
        )
    return whole


def read_checkpoint(checkpoint: Path, architecture: Architecture) -> dict[str, torch.Tensor]:
    """transformers' weights of a nanotron checkpoint of any layout, in the precision they were trained in.

    `DataError` when the checkpoint is not whole, or of another architecture.
    """
    wanted, weights = shapes(architecture), {}
    for name in names_of(architecture):
        weight = read_weight(checkpoint, name)
        size = (sum(wanted[part][0] for part in parts_of(name)), *wanted[parts_of(name)[0]][1:])
        if tuple(weight.shape) != size:
            raise DataError(
                f"{checkpoint}: {name} is {list(weight.shape)}, but the recipe makes it {list(size)}; the checkpoint"
                " is of another model"
            )
        weights |= to_transformers(name, weight, architecture)
    return weights

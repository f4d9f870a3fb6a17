"""What nanotron 0.2 needs at start-up; its files are never edited.

`load()` is called before anything imports nanotron, and refuses any other version. Four groups:

A  where flash-attn is not installed: attention, rotary positions and norms on torch's own kernels, under flash-attn's
   names; they run on CPUs and GPUs alike
B  where there is no CUDA: the few calls that name the device go to the CPU, and processes communicate over gloo
C  repairs of 0.2 on any device
D  where the compute file says `compile: true`: element-wise operations are fused into one kernel each

The docstring of a patch says what fails without it; tests/stages/train/test_nanotron.py leaves out one at a time and
checks that it fails.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# nanotron has its own environment, which the type checker does not see

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cosmopedia.core.errors import ConfigError

VERSION = "0.2"  # of nanotron, that these patches were written for and tested with


class Patch(NamedTuple):
    """One patch: its group, and the function that applies it (whose docstring is the reason)."""

    group: str
    apply: Callable[[], None]


# --- A: torch's kernels under flash-attn's names ---------------------------------------------------------------------


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    **unused: Any,
) -> torch.Tensor:
    """Attention of concatenated sequences: q [tokens, heads, d], k and v [tokens, kv heads, d] -> [tokens, heads, d].

    `cu_seqlens_*` [sequences + 1] are the offsets of the sequences. nanotron trains on sequences of one length, and
    no others are accepted here.
    """
    sequences = len(cu_seqlens_q) - 1
    if len(q) != sequences * max_seqlen_q or len(k) != sequences * max_seqlen_k:
        raise NotImplementedError("sequences of different lengths; training has none, and generation is not supported")
    q, k, v = (x.unflatten(0, (sequences, -1)).transpose(1, 2) for x in (q, k, v))
    mixed = functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return mixed.transpose(1, 2).flatten(0, 1)


class RotaryEmbedding(torch.nn.Module):
    """Rotary positions as in flash-attn's class of the same name, interleaved; computed in fp32.

    q [batch, sequence, heads, d]; kv [batch, sequence, 2, kv heads, d], of which k is rotated. Returns both.
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False, **unused: Any):
        super().__init__()
        if not interleaved:
            raise NotImplementedError("rotary positions that are not interleaved")
        self.dim, self.base = dim, base
        self._table: tuple[torch.Tensor, torch.Tensor] | None = None

    def _angles(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [length, 1, d / 2]; kept, since all layers and steps have the same length."""
        if self._table is None or len(self._table[0]) < length or self._table[0].device != device:
            steps = torch.arange(0, self.dim, 2, dtype=torch.float32, device=device) / self.dim
            positions = torch.arange(length, dtype=torch.float32, device=device)
            angles = torch.outer(positions, 1.0 / self.base**steps).unsqueeze(1)
            self._table = angles.cos(), angles.sin()
        return self._table[0][:length], self._table[1][:length]

    def forward(self, q: torch.Tensor, kv: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = kv.unbind(2)
        cos, sin = self._angles(q.shape[1], q.device)
        return rotated(q, cos, sin), torch.stack((rotated(k, cos, sin), v), 2)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [batch, sequence, heads, d], pairs of neighbours rotated by their angle; cos and sin [sequence, 1, d / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    is_rms_norm: bool = False,
    **unused: Any,
) -> torch.Tensor:
    """RMSNorm over the last dimension."""
    if not is_rms_norm or bias is not None or residual is not None:
        raise NotImplementedError("a norm other than RMSNorm")
    return rms_norm(x, weight, eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _module(name: str, **content: Any) -> None:
    """Register a module and put it into its parent."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(content)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def _no_generation(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("nanotron's own generation; export the model and use transformers")


def _flash_attention() -> None:
    """nanotron's Llama imports flash-attn's attention at the top: without it nothing can be imported."""
    _module("flash_attn")
    functions = {"flash_attn_varlen_func": attention, "flash_attn_with_kvcache": _no_generation}
    _module("flash_attn.flash_attn_interface", **functions)
    _module("flash_attn.bert_padding", unpad_input=_no_generation, pad_input=_no_generation)


def _flash_rotary() -> None:
    """nanotron's Llama imports flash-attn's rotary positions at the top."""
    _module("flash_attn.layers")
    _module("flash_attn.layers.rotary", RotaryEmbedding=RotaryEmbedding)


def _flash_norm() -> None:
    """nanotron's norms are flash-attn's Triton kernels."""
    _module("flash_attn.ops")
    _module("flash_attn.ops.triton")
    _module("flash_attn.ops.triton.layer_norm", layer_norm_fn=norm)


# --- B: the CPU ------------------------------------------------------------------------------------------------------


def _cuda_calls() -> None:
    """nanotron sets and synchronises a CUDA device at its start, which raises in a torch without CUDA."""
    for name in ("set_device", "synchronize", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda *_, **__: None)


def _on_cpu(device: object) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


class OnCpu(TorchFunctionMode):
    """Whoever asks for a tensor on CUDA gets it on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _on_cpu(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        elif func is torch.Tensor.to and len(args) > 1 and _on_cpu(args[1]):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)


def _device_names() -> None:
    """nanotron writes "cuda" wherever it makes a tensor."""
    OnCpu().__enter__()


def _gloo() -> None:
    """nanotron raises NotImplementedError where there is no CUDA, before it reaches its own gloo branch."""
    from nanotron import distributed as dist

    def initialise() -> bool:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=dist.default_pg_timeout)
        return True

    dist.initialize_torch_distributed = initialise


def _all_reduce() -> None:
    """nanotron reduces weights in place; gloo's collectives refuse a leaf that requires a gradient."""
    from nanotron import distributed as dist

    inner = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return inner(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce


def _pipeline() -> None:
    """Neighbours in a pipeline send to each other at once: gloo's sends wait for the receiver, NCCL's do not. And
    gradients are received inside backward, which `OnCpu` does not see."""
    from nanotron import distributed as dist
    from nanotron.parallel.pipeline_parallel.p2p import P2P

    under_way: list[tuple[Any, torch.Tensor]] = []

    def send(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        under_way[:] = [(work, sent) for work, sent in under_way if not work.is_completed()]
        copy = tensor.detach().clone()  # nanotron reuses its buffers
        under_way.append((dist.isend(copy, *args, **kwargs), copy))

    def send_tensors(self: Any, tensors: list[torch.Tensor], to_rank: int, tag: int = 0) -> None:
        sent = [tensor.detach().clone() for tensor in tensors]
        for copy, tensor in zip(sent, tensors, strict=True):
            copy.requires_grad_(tensor.requires_grad)  # which the receiver reads
        under_way.extend(zip(self.isend_tensors(sent, to_rank, tag), sent, strict=True))

    def initialise(self: Any, pg: Any, device: torch.device) -> None:
        inner(self, pg, torch.device("cpu"))

    inner = P2P.__init__
    dist.send, P2P.send_tensors, P2P.__init__ = send, send_tensors, initialise


def _rotary_buffer() -> None:
    """The rotary table of nanotron's generation asserts that it is on CUDA, even when only training is wanted."""
    from nanotron.models.llama import RotaryEmbedding as Table

    def initialise(self: Any) -> None:
        if not self._initialized_buffer:
            steps = torch.arange(0, self.dim, 2, dtype=torch.float32)[: self.dim // 2] / self.dim
            angles = torch.outer(torch.arange(self.end), 1.0 / self.theta**steps).float()
            table = torch.view_as_real(torch.polar(torch.ones_like(angles), angles))
            self.register_buffer("freqs_cis", table, persistent=False)
            self._initialized_buffer = True

    Table.init_rotary_embeddings = initialise


# --- C: repairs ------------------------------------------------------------------------------------------------------


def _rate_after_resume() -> None:
    """The optimiser is built with the rate of step 0, and 0.2 loads the schedule without setting the rate: the first
    step after a resume runs at that rate, while the log shows the right one."""
    from nanotron import trainer

    inner = trainer.load_lr_scheduler

    def load(lr_scheduler: Any, *args: Any, **kwargs: Any) -> None:
        inner(lr_scheduler, *args, **kwargs)
        for group, rate in zip(lr_scheduler.optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    trainer.load_lr_scheduler = load


def _shard_metadata() -> None:
    """Under numpy 2 a shard's metadata says `np.int64(...)` for sizes, which nanotron cannot parse."""
    from nanotron.serialize.metadata import TensorMetadata

    inner = TensorMetadata.to_str_dict

    def to_str_dict(self: Any) -> dict[str, str]:
        self.unsharded_shape = tuple(int(size) for size in self.unsharded_shape)
        return inner(self)

    TensorMetadata.to_str_dict = to_str_dict


def _another_layout() -> None:
    """When the layout is not the one that saved the optimiser's states, 0.2 looks for them under names that it never
    writes: a training could only be resumed on the same number of GPUs."""
    from nanotron import distributed as dist
    from nanotron import trainer
    from nanotron.optim import NamedOptimizer, ZeroDistributedOptimizer

    from stages.train.nanotron.resharding import MASTER, SavedStates, mine

    inner = trainer.load_optimizer

    def load(optimizer: Any, parallel_context: Any, root_folder: Any, model: Any, **kwargs: Any) -> None:
        saved = SavedStates(root_folder)
        groups = {name: getattr(parallel_context, f"{name}_pg") for name in saved.layout}
        if saved.layout == {name: group.size() for name, group in groups.items()}:
            return inner(optimizer, parallel_context, root_folder, model=model, **kwargs)
        zero, named = optimizer if isinstance(optimizer, ZeroDistributedOptimizer) else None, optimizer
        while not isinstance(named, NamedOptimizer):
            named = named.optimizer
        plain = getattr(model, "module", model)
        params = dict(plain.get_named_params_with_correct_tied())
        own = optimizer.state_dict()
        names = [named.id_to_name[id(param)] for group in named.optimizer.param_groups for param in group["params"]]
        states: dict[str, Any] = {"state": {}, "names": dict(enumerate(names)), "param_groups": own["param_groups"]}
        for index, name in enumerate(names):
            offsets = zero.param_name_to_dp_rank_offsets[name][dist.get_rank(groups["dp"])] if zero else None
            parts = {key: mine(whole, params[name], offsets) for key, whole in saved.whole(name).items()}
            if MASTER in parts:
                states.setdefault("gradient_accumulator", {})[name] = parts.pop(MASTER)
            states["state"][index] = parts
        optimizer.load_state_dict(states)

    trainer.load_optimizer = load


# --- D: compiled kernels ---------------------------------------------------------------------------------------------


def gated(merged: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the last dimension, times the second."""
    gate, up = merged.chunk(2, -1)
    return functional.silu(gate) * up


def _compiled() -> None:
    """Rotary positions, norms and gates take eight to twelve passes over memory each; compiled they take one or two.
    The ones that flash-attn brings are kernels already and stay."""
    from nanotron.models import llama

    compiled = torch.compile(gated, dynamic=False)
    llama.GLUActivation.forward = lambda self, merged: compiled(merged)
    for name in ("rotated", "rms_norm"):
        globals()[name] = torch.compile(globals()[name], dynamic=False)


BEFORE = {  # nanotron is imported
    "flash_attention": Patch("A", _flash_attention),
    "flash_rotary": Patch("A", _flash_rotary),
    "flash_norm": Patch("A", _flash_norm),
    "cuda_calls": Patch("B", _cuda_calls),
}
AFTER = {
    "gloo": Patch("B", _gloo),
    "all_reduce": Patch("B", _all_reduce),
    "pipeline": Patch("B", _pipeline),
    "rotary_buffer": Patch("B", _rotary_buffer),
    "device_names": Patch("B", _device_names),
    "rate_after_resume": Patch("C", _rate_after_resume),
    "shard_metadata": Patch("C", _shard_metadata),
    "another_layout": Patch("C", _another_layout),
    "compiled": Patch("D", _compiled),
}


def groups(compiled: bool = False) -> set[str]:
    """The groups that this machine needs; `compiled` adds the compiled kernels."""
    needed = {"C", "D"} if compiled else {"C"}
    if importlib.util.find_spec("flash_attn") is None:
        needed.add("A")
    if not torch.cuda.is_available():
        needed.add("B")
    return needed


def check_version() -> None:
    """`ConfigError` when nanotron is missing or another version."""
    try:
        version = importlib.metadata.version("nanotron")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"nanotron is not installed for {sys.executable}; run `make nanotron`") from None
    if version != VERSION:
        raise ConfigError(
            f"nanotron {version} is installed for {sys.executable}, but the patches were made for {VERSION} and fit no"
            " other version; run `make nanotron`"
        )


def load(without: Collection[str] = (), compiled: bool = False) -> list[str]:
    """Import nanotron, patched; returns the patches applied. `without` leaves some out, for their tests."""
    check_version()
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # nanotron insists on it where it overlaps communication
    needed, applied = groups(compiled), []
    for patches in (BEFORE, AFTER):
        for name, patch in patches.items():
            if patch.group in needed and name not in without:
                patch.apply()
                applied.append(name)
    return applied

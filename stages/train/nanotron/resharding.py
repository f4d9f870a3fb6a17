"""The optimiser's states saved by one layout, cut for the processes of another.

nanotron 0.2 saves one file of states per process that has its own (pp, tp, and with ZeRO dp): by parameter, each state
in the shape of the process's part of the weight; with ZeRO flattened, and cut at the offsets in
`optimizer_config.json`. Which part of a weight that is, is in the metadata of its file in the same checkpoint.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cosmopedia.core.errors import DataError
from stages.train.nanotron.weights import shards_of

FILE = re.compile(r"optimizer_pp-(\d+)-of-\d+(?:_dp-(\d+)-of-\d+)?_tp-(\d+)-of-\d+_exp-0-of-1\.pt")
MASTER = "master"  # the fp32 copy of a weight that is trained in bf16


class SavedStates:
    """The optimiser's states in a checkpoint of nanotron."""

    def __init__(self, checkpoint: Path):
        self.checkpoint, self.folder = checkpoint, checkpoint / "optimizer"
        self.config = json.loads((self.folder / "optimizer_config.json").read_text(encoding="utf-8"))
        self.layout = {name: int(self.config["parallelism"][f"{name}_size"]) for name in ("dp", "tp", "pp")}
        self.zero = self.config["type"] == "ZeroDistributedOptimizer"

    @cached_property
    def _files(self) -> dict[tuple[int, int, int], dict[str, Any]]:
        """The content of each process's file by (pp, tp, dp); tensors are read when they are used."""
        files = {}
        for path in sorted(self.folder.glob("optimizer_*.pt")):
            if match := FILE.fullmatch(path.name):
                pp, dp, tp = (int(number or 0) for number in match.groups())
                files[pp, tp, dp] = torch.load(path, map_location="cpu", mmap=True)
        wanted = self.layout["pp"] * self.layout["tp"] * (self.layout["dp"] if self.zero else 1)
        if len(files) != wanted:
            raise DataError(
                f"{self.folder} holds the states of {len(files)} process(es), but optimizer_config.json says {wanted};"
                f" remove {self.checkpoint}, and training goes on from the one before"
            )
        return files

    def _saved(self, name: str, pp: int, tp: int, dp: int) -> dict[str, torch.Tensor]:
        """The states of a parameter in one process's file; empty when that has none."""
        content = self._files[pp, tp, dp]
        index = next((index for index, known in content["names"].items() if known == name), None)
        if index is None:
            return {}
        states = dict(content["state"][index])
        if "gradient_accumulator" in content:
            states[MASTER] = content["gradient_accumulator"][name]
        return states

    def whole(self, name: str) -> dict[str, torch.Tensor]:
        """The states of a parameter in the shape of the whole weight; numbers, like `step`, as they are.

        `DataError` when no process saved any.
        """
        for pp, tp, dp in self._files:
            if keys := self._saved(name, pp, tp, dp):
                return {key: value if not value.ndim else self._joined(pp, name, key) for key, value in keys.items()}
        raise DataError(f"{self.folder} holds no states of {name}; remove {self.checkpoint}")

    def _joined(self, pp: int, name: str, key: str) -> torch.Tensor:
        """One state of a parameter, joined over the tensor-parallel ranks of a stage."""
        whole: torch.Tensor | None = None
        for tp, shape, pairs in shards_of(self.checkpoint, name):
            part = self._part(pp, tp, name, key)
            if not pairs:  # every rank has all of it
                return part
            whole = torch.empty(shape, dtype=part.dtype) if whole is None else whole
            for local, target in pairs:
                whole[target] = part[local]
        assert whole is not None
        return whole

    def _part(self, pp: int, tp: int, name: str, key: str) -> torch.Tensor:
        """One state of a tensor-parallel rank's part of a weight, joined over ZeRO's processes."""
        if not self.zero:
            return self._saved(name, pp, tp, 0)[key]
        saved = (self._saved(name, pp, tp, dp) for dp in range(self.layout["dp"]))  # of a small weight some have none
        shape = [int(size) for size in self.config["configs"]["orig_param_shapes"][name]]
        return torch.cat([states[key] for states in saved if states]).view(shape)


def mine(whole: torch.Tensor, param: Any, zero: tuple[int, int] | None) -> torch.Tensor:
    """This process's part of a state: that of its part of the weight; with ZeRO flattened and cut at its offsets."""
    if not whole.ndim:
        return whole.clone()
    part = whole
    if param.is_sharded:
        part = torch.empty(param.shape, dtype=whole.dtype)
        for pair in param.get_sharded_info().local_global_slices_pairs:
            part[pair.local_slices] = whole[pair.global_slices]
    return (part.flatten()[slice(*zero)] if zero else part).contiguous().clone()

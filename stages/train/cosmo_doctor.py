"""What `cosmo doctor` checks for the training."""

import os
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from cosmopedia.cli.doctor import Finding
from cosmopedia.core.params import load
from cosmopedia.execution.compute import Compute
from stages.train.__main__ import TrainParams
from stages.train.nanotron.patches import VERSION


def checks(compute: Compute) -> Iterator[Finding]:
    """The checks, still to be made. `ConfigError` when the training's settings are wrong."""
    params = load("train", TrainParams)
    return chain(check_torch(params), check_nanotron(params, compute))


def check_torch(params: TrainParams) -> Iterator[Finding]:
    import torch

    cuda = torch.cuda.is_available()
    detail = torch.__version__
    if cuda:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        detail += f", {len(names)} GPU(s): {', '.join(sorted(set(names)))}"
    large = params.architecture.parameters * params.steps > 1e12  # hours on a CPU
    needed = large and params.backend == "transformers"
    yield Finding("torch", True, detail)
    yield Finding("GPU", cuda, "seen by torch" if cuda else "torch sees none here", needed)


def check_nanotron(params: TrainParams, compute: Compute) -> Iterator[Finding]:
    """nanotron's own environment, from a process in it."""
    needed = params.backend == "nanotron"
    if compute.training.container is not None:
        yield Finding("nanotron", True, f"in {compute.training.container.image}; not looked into", needed)
        return
    path = Path(compute.training.python)
    if not path.exists():
        yield Finding("nanotron", False, f"{path} is not there; run `make nanotron`", needed)
        return
    script = "from stages.train.nanotron import patches; print(sorted(patches.groups()), *patches.load())"
    done = subprocess.run([str(path), "-c", script], capture_output=True, text=True, env=os.environ | {"RANK": "0"})
    if done.returncode:
        yield Finding("nanotron", False, done.stderr.strip().splitlines()[-1][:200], needed)
        return
    groups = done.stdout.splitlines()[-1].partition("]")[0].strip("[")
    flash = "torch's kernels instead of flash-attn" if "A" in groups else "flash-attn"
    device = "on the CPU" if "B" in groups else "on GPUs"
    yield Finding("nanotron", True, f"{VERSION}, {device}, {flash}", needed)

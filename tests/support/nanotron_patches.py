"""Train a few steps with each patch left out, and write what happened; run by tests/stages/train/test_nanotron.py.

Each attempt is a fork of this process, which has imported torch but not nanotron. With `all` as the second argument
every patch is left out once; otherwise only what nanotron would ignore is tried.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from cosmopedia.execution.compute import Layout
from stages.train.nanotron import patches, worker
from stages.train.nanotron.config import check, render, write
from stages.train.nanotron.job import TrainingJob
from tests.support.training_repository import recipe_of, write_corpus


def write_job(folder: Path, steps: int, layout: Layout | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    job = TrainingJob(
        recipe=recipe_of(steps=steps, warmup_steps=1, architecture={"layers": 2}),
        layout=layout or Layout(),
        tokens=folder.parent / "tokens",
        precision="fp32",
        checkpoint_seconds=1e-9,
    )
    (folder / "job.json").write_text(job.model_dump_json())


def attempt(folder: Path, without: Collection[str], what: Callable[..., object] | None = None) -> str:
    """`what`, else a training, in one fork per process: what they returned or raised, "well" for a training."""
    processes = TrainingJob.model_validate_json((folder / "job.json").read_text()).layout.processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    reader, writer = os.pipe()
    children = [os.fork()]
    while children[-1] and len(children) < processes:
        children.append(os.fork())
    if not children[-1]:
        try:
            rank = str(len(children) - 1)
            os.environ |= {**address, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes)}
            if what is None:
                worker.run(folder, without)
            outcome = str(what(folder, without)) if what else "well"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(writer, f"{outcome[:1000]}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = "\n".join(sorted(set(pipe.read().decode(errors="replace").splitlines())))
    for child in children:
        os.waitpid(child, 0)
    return outcome


def metadata(folder: Path, without: Collection[str]) -> str:
    """The metadata of a shard whose sizes are numpy integers."""
    patches.load(without)
    import numpy as np
    from nanotron.constants import CHECKPOINT_VERSION
    from nanotron.serialize.metadata import TensorMetadata

    return str(TensorMetadata(CHECKPOINT_VERSION, (), (np.int64(3), 4)).to_str_dict())


def mistyped_key(folder: Path, without: Collection[str]) -> None:
    """nanotron itself turns a model_config with an unknown key into a dict, and goes on."""
    _checked(folder, lambda config: config["model"]["model_config"].update(num_hiden_layers=2), None)


def no_checkpoint(folder: Path, without: Collection[str]) -> None:
    """nanotron itself begins again."""
    _checked(folder, lambda config: None, folder / "checkpoints/7")


def _checked(folder: Path, change: Callable[[dict], object], checkpoint: Path | None) -> None:
    patches.load()
    from nanotron.config import get_config_from_file

    job = TrainingJob.model_validate_json((folder / "job.json").read_text())
    config = render(job, folder, 0, checkpoint)
    change(config)
    write(folder / "config.yaml", config)
    check(get_config_from_file(str(folder / "config.yaml")), checkpoint)


def same_end(folder: Path) -> bool:
    """Whether the last weights are those that the first run had (kept in end.pt)."""
    from stages.train.nanotron.weights import read_checkpoint

    recipe = TrainingJob.model_validate_json((folder / "job.json").read_text()).recipe
    weights = read_checkpoint(folder / "checkpoints/12", recipe.architecture)
    kept = folder / "end.pt"
    if not kept.exists():
        torch.save(weights, kept)
        return True
    known = torch.load(kept)
    return all(torch.equal(weights[name], known[name]) for name in known)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    write_corpus(folder / "tokens")
    outcomes = {}
    write_job(folder / "all", 3)
    for wrong in (mistyped_key, no_checkpoint):
        outcomes[wrong.__name__] = attempt(folder / "all", (), wrong)
    if sys.argv[2:] == ["all"]:
        outcomes |= without_each(folder)
    (folder / "found.json").write_text(json.dumps(outcomes))


def without_each(folder: Path) -> dict[str, str]:
    """What happens without each patch, and with all of them."""
    outcomes = {}
    for name in ("", *patches.BEFORE, *patches.AFTER):
        if name in ("rate_after_resume", "another_layout"):
            continue
        write_job(folder / (name or "all"), 3, Layout(pp=2, micro_batch=4) if name == "pipeline" else None)
        outcomes[name] = attempt(folder / (name or "all"), {name}, metadata if name == "shard_metadata" else None)
    outcomes["rate_after_resume"] = resume_twice(folder / "resume")
    outcomes["another_layout"] = resume_on_two(folder / "layout")
    return outcomes


def resume_twice(folder: Path) -> str:
    """A resume with all patches must change nothing; without the repair it must."""
    write_job(folder, 12)
    attempt(folder, set())
    same_end(folder)
    for without in (set(), {"rate_after_resume"}):
        (folder / "result.json").unlink()
        shutil.rmtree(folder / "checkpoints/12")
        outcome = attempt(folder, without)
        if outcome != "well":
            return outcome
        if not same_end(folder):
            return "other losses after the resume" if without else "a resume with all patches changed the weights"
    return "well"


def resume_on_two(folder: Path) -> str:
    """A resume on two processes without the repair."""
    write_job(folder, 3)
    outcome = attempt(folder, set())
    if outcome != "well":
        return outcome
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints/3")
    write_job(folder, 3, Layout(dp=2, micro_batch=2))
    return attempt(folder, {"another_layout"})


if __name__ == "__main__":
    main()

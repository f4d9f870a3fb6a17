"""What a sweep's arms would generate and train: `cosmo plan`, in each arm's params, on this checkout's results."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ClusterError
from cosmopedia.sweeps.definition import Sweep
from cosmopedia.sweeps.outlook import ArmOutlook
from cosmopedia.sweeps.running import folder_of
from cosmopedia.sweeps.sharing import Stage
from cosmopedia.sweeps.worktrees import Start, discard, environment, prepare


@dataclass(frozen=True)
class ArmCost:
    """What an arm pays for that no earlier arm does; None: not known, or nothing. Two arms may want the same new
    completion, which is paid for once: sums over arms are bounds."""

    arm: str
    new: int | None  # completions
    cached: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    hours: float | None  # of servers and trainers, one after the other
    gpu_hours: float | None
    money: float | None
    estimated: bool  # whether another stage that would run may change the numbers
    parameters: int  # of the arm's models
    training_tokens: int  # of one seed


def arm_costs(sweep: Sweep, stages: Sequence[Stage], arms: Sequence[ArmOutlook]) -> list[ArmCost]:
    """The cost of each arm. `ClusterError` when an arm's prompts cannot be made."""
    folder, start = folder_of(sweep.name) / ".plan", Start()
    after = {stage.name: stage.after for stage in stages}
    try:
        costs = []
        for one in arms:
            prepare(folder, start, sweep.arms[one.arm])
            link_results(folder)
            costs.append(_cost(one, json.loads(_plan(folder, pending(one.own, after)))))
        return costs
    finally:
        discard(folder)


def link_results(folder: Path) -> None:
    """Let a worktree read this checkout's results: data/ and models/."""
    for parent in ("data", "models"):
        for path in Path(parent).iterdir() if Path(parent).is_dir() else ():
            link = folder / parent / path.name
            if path.name != "samples" and not path.name.startswith(".") and not link.exists():
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path.resolve())


def pending(own: Sequence[str], after: dict[str, frozenset[str]]) -> list[dict[str, Any]]:
    """The stages that an arm runs, each with those before it that it runs too."""
    before: dict[str, set[str]] = {}
    for stage in own:
        nearest = [name for name in after[stage] if name in before]
        before[stage] = set(nearest).union(*(before[name] for name in nearest))
    return [{"stage": stage, "why": "", "after": sorted(names)} for stage, names in before.items()]


def _plan(folder: Path, stages: list[dict[str, Any]]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cosmopedia.sweeps.drive", "plan"],
        cwd=folder,
        env=environment("plan"),
        input=json.dumps(stages),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"{folder}: {done.stderr.strip()[-800:]}")
    return done.stdout


def _cost(one: ArmOutlook, plan: dict[str, Any]) -> ArmCost:
    total = plan["total"]
    return ArmCost(
        arm=one.arm,
        new=total["prompts_new"],
        cached=total["prompts_cached"],
        prompt_tokens=total["prompt_tokens"],
        completion_tokens=total["completion_tokens"],
        hours=total["hours"],
        gpu_hours=total["gpu_hours"],
        money=total["money"],
        estimated=any(stage["known"] != "counted" for stage in plan["stages"] if stage["stage"] != "train"),
        parameters=plan["model"]["parameters"],
        training_tokens=plan["model"]["tokens"],
    )


def summed(costs: Sequence[ArmCost], name: str) -> float | None:
    """The sum of a field over the arms that have one."""
    values = [value for cost in costs if (value := getattr(cost, name)) is not None]
    return sum(values) if values else None

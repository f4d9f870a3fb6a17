"""The process of an arm, in its worktree: `dvc repro`, a Slurm job that drives it, or what it would cost.

Run: python -m cosmopedia.sweeps.drive {run | submit | plan} [arguments of dvc repro]
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from cosmopedia.core.errors import errors_as_sentences
from cosmopedia.execution.redaction import say
from cosmopedia.execution.settings import repairs


def check_out() -> None:
    """Bring what dvc.lock names and DVC's cache has into a worktree where DVC has not been yet.

    `dvc repro` does the same stage by stage, and reads and writes dvc.lock each time: 106 CPU seconds for 26 stages,
    where both together take 18.
    """
    if not Path(".dvc/tmp").exists():
        subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q", "--allow-missing"], check=False)


def submit(arguments: list[str]) -> str:
    """The number of the job that drives this checkout; a new one unless one waits or runs already."""
    from cosmopedia.execution.slurm import commands, driver

    running = [job for job in commands.queue(name=driver.checkout_name("driver")) if not job.ended]
    return running[0].id if running else driver.submit(arguments)[0]


def plan() -> str:
    """`cosmo plan --json` of the stages that standard input names, and the scale of the arm's models."""
    from cosmopedia.cli.pending import Pending, make_plan
    from cosmopedia.cli.stages import stage_module

    model = stage_module("train", "plan").training_forecast(False)
    stages = [Pending(one["stage"], one["why"], frozenset(one["after"])) for one in json.load(sys.stdin)]
    scale = {"parameters": model.parameters, "tokens": model.tokens}
    return json.dumps(make_plan(stages).as_dict() | {"model": scale})


def main() -> None:
    with errors_as_sentences("sweep: "):
        action, *arguments = sys.argv[1:]
        if action == "plan":
            print(plan())
            return
        check_out()
        if action == "submit":
            print(submit(arguments))
        else:
            for sentence in repairs():
                say(sentence)
            os.execv(sys.executable, [sys.executable, "-m", "dvc", "repro", *arguments])


if __name__ == "__main__":
    main()

"""The process of an arm, in its worktree: `dvc repro`, or a Slurm job that drives it.

Run: python -m cosmopedia.sweeps.drive [submit]
"""

import os
import sys

from cosmopedia.errors import errors_as_sentences
from cosmopedia.execution.redaction import say
from cosmopedia.execution.settings import repairs


def submit() -> str:
    """The number of the job that drives this checkout; a new one unless one waits or runs already."""
    from cosmopedia.execution.slurm import commands, driver

    running = [job for job in commands.queue(name=driver.checkout_name("driver")) if not job.ended]
    return running[0].id if running else driver.submit([])[0]


def main() -> None:
    with errors_as_sentences("sweep: "):
        if sys.argv[1:] == ["submit"]:
            print(submit())
            return
        for sentence in repairs():
            say(sentence)
        os.execv(sys.executable, [sys.executable, "-m", "dvc", "repro"])


if __name__ == "__main__":
    main()

"""What the stages bring to the command: files named `stages/<stage>/cosmo_<what>.py`.

The library imports no stage. Some commands need one all the same: the preview renders prompts, the forecast wants the
requests that a stage would make, the doctor looks at the training's settings. Such code is in the stage's folder and
is found by its name: `cosmo_preview` is a command of its own, `cosmo_requests`, `cosmo_doctor` and `cosmo_status`
contribute to the library's commands, as does `cosmo_plan`.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

STAGES = Path(__file__).parents[2] / "stages"


def stage_module(stage: str, what: str) -> ModuleType:
    """The module `cosmo_<what>` of a stage."""
    return import_module(f"stages.{stage}.cosmo_{what}")


def stage_modules(what: str) -> Iterator[ModuleType]:
    """The module `cosmo_<what>` of each stage that has one, in the stages' alphabetical order."""
    for path in sorted(STAGES.glob(f"*/cosmo_{what}.py")):
        yield import_module(f"stages.{path.parent.name}.{path.stem}")

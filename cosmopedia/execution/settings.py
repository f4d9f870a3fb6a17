"""Every setting of the pipeline, checked before the first stage works, so that a mistake in a late one costs nothing.

Each `stages/<stage>/__main__.py` has a function `settings`, which reads what the stage is told (its params, templates,
reviewed decisions) and raises a `ConfigError` for what is wrong. Here all of them are called, and the compute file is
read.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from cosmopedia.core.errors import ConfigError, CosmoError
from cosmopedia.core.files import write_text
from cosmopedia.core.lineage import hash_files, store_root
from cosmopedia.core.params import profile_path, read_yaml
from cosmopedia.core.rng import content_hash
from cosmopedia.execution.comment_edits import accept_comment_edits
from cosmopedia.execution.compute import compute_path, load_compute
from cosmopedia.execution.local_pins import pin_problems
from cosmopedia.execution.lock_repair import remove_cut_rwlock, restore_lock


def repairs() -> Iterator[str]:
    """Repair DVC's files before a run (lock_repair.py, comment_edits.py); a sentence for each thing that was done."""
    for repair in (remove_cut_rwlock, restore_lock):
        if done := repair():
            yield done
    if edited := accept_comment_edits():
        yield f"only comments and docstrings were edited in {', '.join(edited)}: nothing reruns for them"


def problems() -> Iterator[str]:
    """A sentence for each stage of this checkout whose settings are wrong, and for the compute file."""
    try:
        load_compute()
    except CosmoError as error:
        yield str(error)
    for stage in read_yaml(Path("dvc.yaml"))["stages"]:
        if not Path("stages", stage, "__main__.py").is_file():  # of another project
            continue
        try:
            import_module(f"stages.{stage}.__main__").settings()
        except CosmoError as error:
            yield str(error)


def check_settings() -> None:
    """`ConfigError` with every sentence of `problems`."""
    sentences = list(dict.fromkeys(problems()))
    if sentences:
        raise ConfigError("nothing was run, since the settings are wrong: " + "; ".join(sentences))


def check_settings_once() -> None:
    """`check_settings`, unless the same settings have passed before: a pipeline has many stages. Pins of local files
    are compared each time."""
    passed = store_root() / "runs" / "settings"
    state = content_hash(*(f"{path} {hash_files([path])}" for path in _files()))
    if not passed.is_file() or passed.read_text(encoding="utf-8") != state:
        check_settings()
        write_text(passed, state)
    if sentences := list(pin_problems(read_yaml(Path("params.yaml")), read_yaml(profile_path()))):
        raise ConfigError("; ".join(sentences))


def _files() -> list[Path]:
    """Everything that decides whether the settings are right."""
    fixed = [Path("params.yaml"), Path("dvc.yaml"), profile_path(), compute_path()]
    folders = [*Path("prompts").rglob("*.txt"), *Path("curation").glob("*"), *Path("stages").rglob("*.py")]
    return sorted(path for path in (*fixed, *folders) if path.is_file())

"""DVC's own files after a kill: it writes dvc.lock, and its list of who reads and writes what, in place. A SIGKILL in
that moment leaves them empty or cut short, and DVC then refuses to run."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from cosmopedia.core.files import write_text
from cosmopedia.core.params import SafeLoader

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")  # DVC's list; one that a process of now is writing is whole a moment later
MOMENT_SECONDS = 0.3


def restore_lock() -> str | None:
    """Replace a damaged dvc.lock by the committed one, or by none; what was done in a sentence, or None.

    Nothing runs twice for it: stages that ran since that commit are in DVC's run cache.
    """
    if not LOCK.is_file() or is_whole(LOCK.read_text(encoding="utf-8", errors="replace")):
        return None
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True, text=True, check=False)
    if committed.returncode == 0 and is_whole(committed.stdout):
        write_text(LOCK, committed.stdout)
        source = "restored from git"
    else:
        LOCK.unlink()
        source = "removed"
    return (
        f"{LOCK} was cut short, as a kill in the moment of writing leaves it: {source}. DVC takes what has run since"
        " from its run cache"
    )


def remove_cut_rwlock() -> str | None:
    """Remove DVC's list of readers and writers when it is no JSON; what was done in a sentence, or None.

    DVC begins another. A stage that runs at this moment keeps its own lock (stage_process.py).
    """
    for wait in (MOMENT_SECONDS, 0):
        try:
            json.loads(RWLOCK.read_bytes())
            return None
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(wait)
    RWLOCK.unlink(missing_ok=True)
    return f"{RWLOCK} was cut short, as a kill in the moment of writing leaves it: removed"


def is_whole(text: str) -> bool:
    """Whether a text is a lock file without a cut: DVC takes it, and no hash is missing its end."""
    try:
        content: Any = yaml.load(text, SafeLoader)
    except yaml.YAMLError:
        return False
    if not isinstance(content, dict) or content.get("schema") != "2.0":
        return False
    stages = content.get("stages", {})
    return isinstance(stages, dict) and all(map(_is_whole_stage, stages.values()))


def _is_whole_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not isinstance(stage.get("cmd"), str):
        return False
    files, params = [stage.get(kind, []) for kind in ("deps", "outs")], stage.get("params", {})
    if not all(isinstance(several, list) for several in files) or not isinstance(params, dict):
        return False
    whole = all(_is_whole_entry(entry) for several in files for entry in several)
    return whole and all(isinstance(values, dict) for values in params.values())


def _is_whole_entry(entry: Any) -> bool:
    kinds = {"path": str, "hash": str, "md5": str, "size": int, "nfiles": int, "isexec": bool}
    return (
        isinstance(entry, dict)
        and "path" in entry
        and all(isinstance(value, kinds.get(name, object)) for name, value in entry.items())
        and len(entry.get("md5", "....")) > 2
    )

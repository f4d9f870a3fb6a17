"""A stage's folder on another disk."""

import os
from pathlib import Path


def on_scratch(out: Path) -> Path:
    """Make a stage's folder a link to one elsewhere, with what an earlier run left in it; returns that folder."""
    scratch = Path("scratch", out.name).absolute()
    (scratch / "removed").mkdir(parents=True)
    for name in ("web-old.parquet", "removed/old.parquet", "seed-99"):
        (scratch / name).write_text("left by an earlier run")
    out.parent.mkdir(exist_ok=True)
    out.symlink_to(scratch)
    return scratch


def files_of(folder: Path) -> list[str]:
    """The files of a folder, hidden ones too."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())

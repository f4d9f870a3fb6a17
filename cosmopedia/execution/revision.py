"""The code's git revision, for records of runs: MLflow and the report's run.html. It is in no out."""

import subprocess

# What DVC rewrites while a pipeline runs: a difference there is a result, and no change that somebody made.
WRITTEN_BY_RUNS = (":(exclude)dvc.lock", ":(exclude)metrics")
# Where a file that git does not know yet changes a result. Elsewhere it is a note, or an out.
INPUTS = ("cosmopedia/", "curation/", "profiles/", "prompts/", "stages/")


def git_revision() -> str:
    """The checkout's commit, with "-dirty" when somebody changed files since; "unknown" outside a git repository."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        status = _git("status", "--porcelain", "--untracked-files=all", "--", ".", *WRITTEN_BY_RUNS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changed = [line for line in status.splitlines() if not line.startswith("??") or line[3:].startswith(INPUTS)]
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def date_of(revision: str) -> str:
    """The day of a revision's commit, YYYY-MM-DD; "" for an unknown one."""
    try:
        return _git("show", "-s", "--format=%cs", revision.removesuffix("-dirty")).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def branch() -> str:
    """The checked-out branch; "" for a commit without one, and outside a git repository."""
    try:
        return _git("branch", "--show-current").strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def file_at(revision: str, path: str) -> str:
    """A file's text at a revision; "" where that has none."""
    try:
        return _git("show", f"{revision}:./{path}")
    except (OSError, subprocess.CalledProcessError):
        return ""

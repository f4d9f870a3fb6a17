"""doctor: show what this machine has and lacks for a run.

For the chosen profile and compute file. Prints a line per check: `ok`, `-` for what is absent and not needed here,
or `MISSING` with what to do. Ends with status 2 when something that is needed is missing. Nothing is installed,
started or trained.
"""

import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from cosmopedia.cli.installed import LOCK, wrong
from cosmopedia.cli.output import Json, new_app, print_json
from cosmopedia.cli.stages import stage_modules
from cosmopedia.core.errors import ConfigError, CosmoError
from cosmopedia.core.lineage import store_root
from cosmopedia.core.params import profile_path
from cosmopedia.execution.compute import Compute, ExternalServing, compute_path, load_compute
from cosmopedia.execution.settings import problems

app = new_app()
MIN_DISK = 5e9  # bytes for the rehearsal: its caches, models and the store


class Finding(NamedTuple):
    """One check."""

    name: str
    ok: bool
    detail: str  # what is there, or what to do
    needed: bool = True

    def line(self) -> str:
        mark = "ok" if self.ok else "MISSING" if self.needed else "-"
        return f"{mark:<8}{self.name:<14}{self.detail}"


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("Python", ok, version if ok else f"{version}; 3.11 or 3.12 is needed: make PYTHON=python3.11 setup")
    packages = wrong()
    detail = f"{', '.join(packages[:5])} not as locked: remove .venv/installed and run `make setup`"
    yield Finding("packages", not packages, detail if packages else f"as in {LOCK}")


def check_tools() -> Iterator[Finding]:
    """git, and DVC next to this Python (make puts it on the PATH)."""
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for name, what in (("git", "install it: DVC and the lineage need it"), ("dvc", "run `make setup`")):
        path = shutil.which(name, path=search_path)
        yield Finding(name, path is not None, path or what)


def check_clone() -> Iterator[Finding]:
    """Whether git has this folder, with its history, under a path that DVC's experiments can use."""
    tracked = _git("ls-files", "--error-unmatch", "dvc.yaml") is not None
    what = "DVC needs a clone, not a ZIP: git clone, or git init && git add -A && git commit -m 'from a ZIP'"
    yield Finding("clone", tracked, "git has this folder" if tracked else what)
    if tracked:
        whole = _git("rev-parse", "--is-shallow-repository") == "false"
        lost = "shallow: `dvc exp run --temp` and queued runs would lose their results; run git fetch --unshallow"
        yield Finding("history", whole, "whole" if whole else lost, needed=False)
    if strange := set("?#%") & set(str(Path.cwd())):
        detail = f"holds {' '.join(sorted(strange))}, which DVC pastes into a URL: `dvc exp run --temp` fails; move it"
        yield Finding("path", False, detail, needed=False)


def _git(*words: str) -> str | None:
    """What a git command prints; None when it fails."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_site_cache() -> Iterator[Finding]:
    """DVC loads pickles from it, so nobody else may write to it."""
    from dvc.config import Config
    from dvc.dirs import site_cache_dir

    path = Path(site_cache_dir(Config.from_cwd()["core"].get("site_cache_dir"))).absolute()
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    private = not place.stat().st_mode & stat.S_IWOTH
    detail = "" if private else ": others can write to it; run `make setup`, and DVC from .venv"
    yield Finding("site cache", private, f"{path}{detail}")


def check_disk() -> Iterator[Finding]:
    for name, path in (("checkout", Path.cwd()), ("store", store_root())):
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        writable = os.access(path, os.W_OK)
        detail = f"{free / 1e9:,.0f} GB free" + ("" if writable else f"; {path} cannot be written")
        yield Finding(name, writable and free > MIN_DISK, detail)


def check_slurm(compute: Compute) -> Iterator[Finding]:
    uses = compute.uses_slurm
    missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]
    if missing:
        yield Finding("Slurm", False, f"{', '.join(missing)} not on the PATH; load your site's module", uses)
        return
    try:
        done = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, timeout=30)
        detail = " ".join(done.stderr.split())[:120] or "the controller answers"
        yield Finding("Slurm", done.returncode == 0, detail, uses)
    except subprocess.TimeoutExpired:
        yield Finding("Slurm", False, "squeue does not answer within 30 s", uses)


def check_secrets(compute: Compute) -> Iterator[Finding]:
    for endpoint in compute.serving.endpoints if isinstance(compute.serving, ExternalServing) else ():
        if endpoint.token_env:
            is_set = bool(os.environ.get(endpoint.token_env))
            yield Finding(
                "token", is_set, f"${endpoint.token_env} for {endpoint.url}{'' if is_set else ': export it'}"
            )


def findings() -> Iterator[Finding]:
    """All checks; wrong settings end them, with a line for each."""
    yield from check_python()
    yield from check_tools()
    yield from check_clone()
    yield from check_site_cache()
    yield from check_disk()
    try:
        wrong = [Finding("settings", False, sentence) for sentence in problems()]
        if wrong:
            yield from wrong
            return
        compute = load_compute()
        of_stages = [module.checks(compute) for module in stage_modules("doctor")]
    except CosmoError as error:
        yield Finding("settings", False, str(error))
        return
    yield Finding("settings", True, f"{profile_path()} and {compute_path()} are well-formed")
    for warning in compute.warnings:
        yield Finding("container", False, warning, needed=False)
    for checks in of_stages:
        yield from checks
    yield from check_slurm(compute)
    yield from check_secrets(compute)


@app.command(epilog="Example: COSMO_COMPUTE=compute/slurm-h100.yaml cosmo doctor")
def doctor(as_json: Json = False) -> None:
    """Show what this machine has and lacks for the chosen profile and compute file; exit status 2 if something that is
    needed is missing."""
    checked = []
    for finding in findings():
        checked.append(finding)
        if not as_json:
            typer.echo(finding.line())
    if as_json:
        print_json([finding._asdict() for finding in checked])
    if missing := [finding.name for finding in checked if finding.needed and not finding.ok]:
        raise ConfigError(f"{', '.join(missing)} missing for {profile_path()} on {compute_path()}; see above")
    if not as_json:
        typer.echo(f"nothing is missing for {profile_path()} on {compute_path()}")

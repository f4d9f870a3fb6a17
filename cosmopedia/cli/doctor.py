"""What this machine has and lacks for the chosen profile and cluster file: `make doctor`.

Prints a line a check: `ok`, `-` for what is absent and not needed here, or `MISSING` with what to do. Ends with
status 2 when something that is needed is missing. Nothing is installed, started or trained.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cosmopedia.cli.stages import stage_modules
from cosmopedia.errors import ConfigError, CosmoError, run_stage
from cosmopedia.execution.compute import Compute, ExternalServing, compute_path, load_compute
from cosmopedia.lineage import store_root
from cosmopedia.params import profile_path

LEAST_DISK = 5e9  # bytes for the rehearsal: its caches, models and the store


class Finding(NamedTuple):
    """One check."""

    name: str
    ok: bool
    found: str  # what is there, or what to do
    needed: bool = True

    def line(self) -> str:
        mark = "ok" if self.ok else "MISSING" if self.needed else "-"
        return f"{mark:<8}{self.name:<14}{self.found}"


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("Python", ok, version if ok else f"{version}; 3.11 or 3.12 is needed: make PYTHON=python3.11 setup")
    wrong = []
    for line in Path("requirements.lock").read_text(encoding="utf-8").splitlines():
        name, equal, rest = line.partition("==")
        if not equal or ";" in rest or line.startswith(" "):  # packages of other platforms are not looked for
            continue
        try:
            if metadata.version(name) != rest.split()[0]:
                wrong.append(name)
        except metadata.PackageNotFoundError:
            wrong.append(name)
    told = f"{', '.join(wrong[:5])} not as locked: remove .venv/installed and run `make setup`"
    yield Finding("packages", not wrong, "as in requirements.lock" if not wrong else told)


def check_tools() -> Iterator[Finding]:
    """git, and DVC beside this Python (make puts it on the PATH)."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for name, what in (("git", "install it: DVC and the lineage need it"), ("dvc", "run `make setup`")):
        path = shutil.which(name, path=beside)
        yield Finding(name, path is not None, path or what)


def check_disk() -> Iterator[Finding]:
    for name, path in (("checkout", Path.cwd()), ("store", store_root())):
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        writable = os.access(path, os.W_OK)
        told = f"{free / 1e9:,.0f} GB free" + ("" if writable else f"; {path} cannot be written")
        yield Finding(name, writable and free > LEAST_DISK, told)


def check_slurm(compute: Compute) -> Iterator[Finding]:
    uses = compute.uses_slurm
    missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]
    if missing:
        yield Finding("Slurm", False, f"{', '.join(missing)} not on the PATH; load your site's module", uses)
        return
    try:
        done = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, timeout=30)
        said = " ".join(done.stderr.split())[:120] or "the controller answers"
        yield Finding("Slurm", done.returncode == 0, said, uses)
    except subprocess.TimeoutExpired:
        yield Finding("Slurm", False, "squeue does not answer within 30 s", uses)


def check_secrets(compute: Compute) -> Iterator[Finding]:
    for endpoint in compute.serving.endpoints if isinstance(compute.serving, ExternalServing) else ():
        if endpoint.token_env:
            there = bool(os.environ.get(endpoint.token_env))
            yield Finding("token", there, f"${endpoint.token_env} for {endpoint.url}{'' if there else ': export it'}")


def findings() -> Iterator[Finding]:
    """All checks; a wrong file ends them with its own sentence."""
    yield from check_python()
    yield from check_tools()
    yield from check_disk()
    try:
        compute = load_compute()
        of_stages = [module.checks(compute) for module in stage_modules("doctor")]
    except CosmoError as error:
        yield Finding("settings", False, str(error))
        return
    yield Finding("settings", True, f"{profile_path()} and {compute_path()} are well-formed")
    for checks in of_stages:
        yield from checks
    yield from check_slurm(compute)
    yield from check_secrets(compute)


def main() -> str:
    missing = []
    for finding in findings():
        print(finding.line(), flush=True)
        if finding.needed and not finding.ok:
            missing.append(finding.name)
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing for {profile_path()} on {compute_path()}; see above")
    return f"nothing is missing for {profile_path()} on {compute_path()}"


if __name__ == "__main__":
    run_stage("doctor", main)

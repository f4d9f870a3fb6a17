"""Write the lock files from pyproject.toml: names, versions and hashes, no addresses.

requirements.lock            everything but torch
requirements-torch.lock      torch as the registry has it, with the CUDA packages that its Linux build needs
requirements-torch-cpu.lock  torch's CPU build (a local version, "+cpu"), where a machine's pip can find one
requirements-nanotron.lock   what the nanotron trainer needs beyond all that (`make nanotron`)
requirements-uv.lock         the installer

`make` installs the first, then tries the CPU build, then the ordinary one. Run as `make lock`.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from cosmopedia.errors import ConfigError, run_stage

INSTALLER = re.compile(r"uv==")
TORCH = re.compile(r"(torch==|nvidia-|cuda-|triton)")
CPU_BUILD = (
    "torch==2.13.0+cpu \\\n    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b\n"
)
ENTRY = re.compile(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?:    [^\n]*\n)*", re.MULTILINE)
NANOTRON = "requirements-nanotron.lock"
COMMAND = ["uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--universal", "--python-version", "3.11"]
QUIET = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]


def split(compiled: str) -> dict[str, str]:
    """The three lock files' contents by name."""
    entries = ENTRY.findall(compiled)
    return {
        "requirements.lock": "".join(
            entry for entry in entries if not TORCH.match(entry) and not INSTALLER.match(entry)
        ),
        "requirements-uv.lock": "".join(entry for entry in entries if INSTALLER.match(entry)),
        "requirements-torch.lock": "".join(entry for entry in entries if TORCH.match(entry)),
        "requirements-torch-cpu.lock": CPU_BUILD,
    }


def added(compiled: str, base: str) -> str:
    """The entries of a resolution that another one has not; the others must be the same in both."""
    entries, known = ENTRY.findall(compiled), set(ENTRY.findall(base))
    names = {entry.partition("==")[0] for entry in known}
    if differing := [entry for entry in entries if entry not in known and entry.partition("==")[0] in names]:
        raise ConfigError(f"nanotron wants another {differing[0].split()[0]} than the rest; loosen pyproject.toml")
    return "".join(entry for entry in entries if entry not in known)


def resolve(*options: str) -> str:
    """uv's resolution of pyproject.toml. `ConfigError` with its words when there is none."""
    result = subprocess.run([*COMMAND, *QUIET, *options], capture_output=True, text=True)
    if result.returncode:
        raise ConfigError(f"pyproject.toml does not resolve: {' '.join(result.stderr.split())[:500]}")
    return result.stdout


def main() -> str:
    """Resolve and write the locks."""
    base = resolve()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(re.sub(r" *\\\n +--hash=\S+", "", base))
        constraints.flush()
        locks = split(base) | {NANOTRON: added(resolve("--group", "nanotron", "-c", constraints.name), base)}
    for name, content in locks.items():
        Path(name).write_text(content, encoding="utf-8")
    return ", ".join(f"{content.count('==')} packages in {name}" for name, content in locks.items())


if __name__ == "__main__":
    run_stage("lock", main)

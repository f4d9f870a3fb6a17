"""Write the lock files from pyproject.toml: names, versions and hashes, no addresses.

requirements.lock            everything but torch
requirements-torch.lock      torch as the registry has it, with the CUDA packages that its Linux build needs
requirements-torch-cpu.lock  torch's CPU build (a local version, "+cpu"), where a machine's pip can find one

`make` installs the first, then tries the CPU build, then the ordinary one. Run as `make lock`.
"""

import re
import subprocess
from pathlib import Path

from stages.errors import ConfigError, run_stage

TORCH = re.compile(r"(torch==|nvidia-|cuda-|triton)")
CPU_BUILD = (
    "torch==2.13.0+cpu \\\n    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b\n"
)
ENTRY = re.compile(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?:    [^\n]*\n)*", re.MULTILINE)
COMMAND = ["uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--universal", "--python-version", "3.11"]
QUIET = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]


def split(compiled: str) -> dict[str, str]:
    """The three lock files' contents by name."""
    entries = ENTRY.findall(compiled)
    return {
        "requirements.lock": "".join(entry for entry in entries if not TORCH.match(entry)),
        "requirements-torch.lock": "".join(entry for entry in entries if TORCH.match(entry)),
        "requirements-torch-cpu.lock": CPU_BUILD,
    }


def main() -> str:
    """Resolve and write the locks."""
    result = subprocess.run([*COMMAND, *QUIET], capture_output=True, text=True)
    if result.returncode:
        raise ConfigError(f"pyproject.toml does not resolve: {' '.join(result.stderr.split())[:500]}")
    locks = split(result.stdout)
    for name, content in locks.items():
        Path(name).write_text(content, encoding="utf-8")
    return ", ".join(f"{content.count('==')} packages in {name}" for name, content in locks.items())


if __name__ == "__main__":
    run_stage("lock", main)

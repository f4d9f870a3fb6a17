"""Write requirements.lock and requirements-cuda.lock from pyproject.toml: names, versions and hashes, no addresses.

The CUDA packages that torch's ordinary Linux build needs stand in a lock of their own, so that a machine with torch's
CPU build installs none of them. `CPU_BUILDS` adds the hashes of that build, which carries the same version number and
may lie on a machine as a wheel. Run as `make lock`.
"""

import re
import subprocess
from pathlib import Path

from stages.errors import ConfigError, run_stage

CUDA = re.compile(r"(nvidia-|cuda-|triton)")
CPU_BUILDS = {"torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
ENTRY = re.compile(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?:    [^\n]*\n)*", re.MULTILINE)
COMMAND = ["uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--universal", "--python-version", "3.11"]
QUIET = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]


def split(compiled: str) -> tuple[list[str], list[str]]:
    """(entries of the main lock, entries of the CUDA lock), with the CPU builds' hashes added."""
    entries = ENTRY.findall(compiled)
    main = [entry for entry in entries if not CUDA.match(entry)]
    for number, entry in enumerate(main):
        hashes = next((h for pin, h in CPU_BUILDS.items() if entry.startswith(pin)), [])
        main[number] = entry.rstrip("\n") + "".join(f" \\\n    --hash=sha256:{h}" for h in hashes) + "\n"
    return main, [entry for entry in entries if CUDA.match(entry)]


def main() -> str:
    """Resolve and write both locks."""
    result = subprocess.run([*COMMAND, *QUIET], capture_output=True, text=True)
    if result.returncode:
        raise ConfigError(f"pyproject.toml does not resolve: {' '.join(result.stderr.split())[:500]}")
    locks = dict(zip(("requirements.lock", "requirements-cuda.lock"), split(result.stdout), strict=True))
    for name, entries in locks.items():
        Path(name).write_text("".join(entries), encoding="utf-8")
    return ", ".join(f"{len(entries)} packages in {name}" for name, entries in locks.items())


if __name__ == "__main__":
    run_stage("lock", main)

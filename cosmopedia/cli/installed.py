"""Whether this environment holds what requirements.lock says. `make setup` asks it before it says "done".

Only the standard library is imported, since a package that is missing is what is looked for.
Run: python -m cosmopedia.cli.installed
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

LOCK = Path("requirements.lock")


def section(name: str, lock: str) -> str:
    """The entries under `# <name>` of a lock file's text."""
    return lock.partition(f"# {name}\n")[2].partition("\n# ")[0]


def locked_versions(name: str = "base") -> Iterator[tuple[str, str]]:
    """Name and version of each package of a section that every machine has; those of some platforms are left out."""
    for line in section(name, LOCK.read_text(encoding="utf-8")).splitlines():
        package, equals, rest = line.partition("==")
        if equals and ";" not in rest and not line.startswith(" "):
            yield package, rest.split()[0]


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def wrong() -> list[str]:
    """The packages that are missing or have another version; of torch, either build will do."""
    locked: dict[str, set[str]] = defaultdict(set)
    for part in ("uv", "base", "torch", "torch-cpu"):
        for package, version in locked_versions(part):
            locked[package].add(version)
    return [package for package, versions in locked.items() if installed_version(package) not in versions]


if __name__ == "__main__":
    if packages := wrong():
        sys.exit(
            f"setup: {len(packages)} package(s) are not in {sys.prefix} as {LOCK} has them: {', '.join(packages[:8])}."
            " Does a pip.conf or uv.toml of yours install to another place (target, prefix, user, python)?"
        )

"""The locks hold names, versions and hashes of everything that pyproject.toml asks for, and no addresses."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = [
    "requirements.lock",
    "requirements-uv.lock",
    "requirements-torch.lock",
    "requirements-torch-cpu.lock",
    "requirements-nanotron.lock",
]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_no_addresses_and_a_hash_for_each_package(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|--index|--find-links|@ ", text)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[A-Za-z0-9_.\-]+==\S+", entry) and "--hash=sha256:" in entry, entry


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["dev"], *groups["nanotron"]]
    names = {re.match(r"[A-Za-z0-9_.\-]+", line)[0].lower().replace("_", "-") for line in wanted}
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in LOCKS)
    assert names <= set(re.findall(r"^([a-z0-9_.\-]+)==", text, re.MULTILINE))

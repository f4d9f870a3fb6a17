"""The lock holds names, versions and hashes of everything that pyproject.toml asks for, and no addresses."""

import re
import tomllib
from pathlib import Path

from cosmopedia.cli.installed import section
from cosmopedia.cli.lock import fits

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
SECTIONS = ["uv", "base", "torch", "torch-cpu", "nanotron", "explore"]
ENTRY = re.compile(r"^([A-Za-z0-9_.\-]+)==\S+", re.MULTILINE)


def names(section_name: str) -> list[str]:
    return ENTRY.findall(section(section_name, LOCK))


def test_the_lock_holds_no_addresses_and_a_hash_for_each_package() -> None:
    assert not re.search(r"https?://|file:|--index|--find-links|@ ", LOCK)
    assert re.findall(r"^# (.*)", LOCK, re.MULTILINE) == SECTIONS
    for entry in re.split(r"\n(?=[^\s#])", re.sub(r"^# .*\n", "", LOCK, flags=re.MULTILINE).strip()):
        assert ENTRY.match(entry) and "--hash=sha256:" in entry, entry


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["dev"], *groups["nanotron"], *groups["explore"]]
    wanted_names = {re.match(r"[A-Za-z0-9_.\-]+", line)[0].lower().replace("_", "-") for line in wanted}
    assert wanted_names <= {name for name_of_section in SECTIONS for name in names(name_of_section)}


def test_what_must_be_apart_is_apart() -> None:
    assert names("uv") == ["uv"] and names("torch-cpu") == ["torch"]
    assert "torch" in names("torch") and "nanotron" in names("nanotron")
    assert "embedding-atlas" in names("explore")
    assert not {"uv", "torch", "triton", "nanotron", "embedding-atlas"} & set(names("base"))


def test_hashes_are_of_files_that_can_be_installed_here() -> None:
    wheels = {
        "typer-0.29.2-py3-none-any.whl": True,
        "six-1.17.0-py2.py3-none-any.whl": True,
        "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl": True,
        "numpy-2.4.6-cp312-cp312-macosx_14_0_arm64.whl": True,
        "pydantic_core-2.40-cp39-abi3-manylinux_2_17_aarch64.whl": True,
        "numpy-2.4.6-cp313-cp313-manylinux_2_28_x86_64.whl": False,
        "numpy-2.4.6-cp311-cp311-musllinux_1_2_x86_64.whl": False,
        "numpy-2.4.6-cp311-cp311-win_amd64.whl": False,
        "numpy-2.4.6-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl": False,
    }
    assert {wheel: fits(wheel) for wheel in wheels} == wheels

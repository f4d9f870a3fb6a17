"""`cosmo lock` turns a resolution into entries, a section per step of `make`."""

import pytest

from cosmopedia.cli.installed import section
from cosmopedia.cli.lock import entries, lock_text
from cosmopedia.core.errors import ConfigError

PYLOCK = """
[[packages]]
name = "regex"
version = "2026.1"
sdist = { url = "r/regex-2026.1.tar.gz", hashes = { sha256 = "aa" } }
wheels = [
  { url = "r/regex-2026.1-cp311-cp311-manylinux_2_28_x86_64.whl", hashes = { sha256 = "bb" } },
  { url = "r/regex-2026.1-cp311-cp311-win_amd64.whl", hashes = { sha256 = "cc" } },
]

[[packages]]
name = "typer"
version = "0.29"
sdist = { url = "r/typer-0.29.tar.gz", hashes = { sha256 = "dd" } }
wheels = [{ url = "r/typer-0.29-py3-none-any.whl", hashes = { sha256 = "ee" } }]

[[packages]]
name = "pywin32"
version = "312"
marker = "sys_platform == 'win32'"
wheels = [{ url = "r/pywin32-312-cp311-cp311-win_amd64.whl", hashes = { sha256 = "ff" } }]

[[packages]]
name = "triton"
version = "3.7"
marker = "sys_platform == 'linux'"
wheels = [{ url = "r/triton-3.7-cp311-cp311-manylinux_2_27_x86_64.whl", hashes = { sha256 = "ab" } }]
"""
REGEX = "regex==2026.1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb"


def test_an_entry_has_the_hashes_of_files_that_can_be_installed_here() -> None:
    locked = entries(PYLOCK)
    assert list(locked) == ["regex==2026.1", "typer==0.29", "triton==3.7 ; sys_platform == 'linux'"]
    assert locked["regex==2026.1"] == REGEX  # the source too: not every platform has a wheel
    assert locked["typer==0.29"] == "typer==0.29 \\\n    --hash=sha256:ee"


def test_a_section_has_what_its_step_installs() -> None:
    base = entries(PYLOCK)
    nanotron = {**base, "nanotron==0.2": "nanotron==0.2 \\\n    --hash=sha256:01"}
    text = lock_text(base, {"nanotron": nanotron, "explore": {"atlas==1": "atlas==1 \\\n    --hash=sha256:03"}})
    assert section("base", text).startswith(REGEX) and "triton" not in section("base", text)
    assert section("torch", text).startswith("triton==3.7 ; sys_platform == 'linux'")
    assert section("torch-cpu", text).startswith("torch==2.13.0+cpu")
    assert section("nanotron", text).strip() == "nanotron==0.2 \\\n    --hash=sha256:01"
    assert section("explore", text).strip() == "atlas==1 \\\n    --hash=sha256:03"


def test_nanotron_may_want_no_other_version_than_the_rest() -> None:
    with pytest.raises(ConfigError, match=r"nanotron wants another typer==0\.1 than the rest"):
        lock_text(entries(PYLOCK), {"nanotron": {"typer==0.1": "typer==0.1 --hash=sha256:02"}})

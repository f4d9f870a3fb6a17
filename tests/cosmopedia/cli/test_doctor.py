"""`cosmo doctor` names what is missing here, and does not mind what is not needed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cosmopedia.cli.doctor import app, check_clone, check_site_cache
from tests.support.command_line import cosmo
from tests.support.training_repository import ROOT, repository, set_compute, set_recipe  # noqa: F401  (the fixture)

NANOTRON = ROOT / ".nanotron/bin/python"


def findings(error: str | None = None) -> dict[str, tuple[str, str]]:
    """What the doctor prints: name -> (mark, detail); given a pattern of the error that it must end with."""
    result = CliRunner().invoke(app)
    if error is None:
        assert "nothing is missing" in result.stdout, result.stdout
    else:
        assert re.search(error, str(result.exception)), result.stdout
    return {line[8:22].strip(): (line[:8].strip(), line[22:]) for line in result.stdout.splitlines()}


@pytest.fixture
def checked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(repository / "site-cache"))
    (repository / "requirements.lock").write_text("# base\npytest==0.1\n")
    (repository / "dvc.yaml").write_text("stages: {}\n")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t")
    return repository


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True)


def test_the_doctor_names_what_is_missing(checked: Path) -> None:
    set_recipe(checked, backend="nanotron")
    set_compute(checked, python="nowhere/python")
    found = findings(r"packages, nanotron missing for profiles/tiny\.yaml")
    assert found["packages"] == ("MISSING", "pytest not as locked: remove .venv/installed and run `make setup`")
    assert found["nanotron"] == ("MISSING", "nowhere/python is not there; run `make nanotron`")
    assert found["Python"][0] == found["git"][0] == found["settings"][0] == "ok"


def test_the_doctor_does_not_mind_what_is_not_needed(checked: Path) -> None:
    (checked / "requirements.lock").write_text(f"# base\npytest=={pytest.__version__}\n")
    set_compute(checked, python="nowhere/python")
    assert findings()["nanotron"][0] == "-"


def test_the_doctor_says_what_a_zip_and_a_shallow_clone_cannot_do(
    checked: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [(check.name, check.ok) for check in check_clone()] == [("clone", True), ("history", True)]
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "second")
    shallow = tmp_path_factory.mktemp("shallow") / "clone"
    git("clone", "-q", "--depth", "1", checked.as_uri(), str(shallow))
    monkeypatch.chdir(shallow)
    _, history = check_clone()
    assert not history.ok and not history.needed
    assert "would lose their results; run git fetch --unshallow" in history.detail
    monkeypatch.chdir(shallow.rename(shallow.with_name("100%")))
    shallow = Path.cwd()
    path = [*check_clone()][-1]
    assert path.name == "path" and path.detail.startswith("holds %, which DVC pastes into a URL") and not path.needed
    shutil.rmtree(shallow / ".git")
    inner = checked / "unpacked"  # in a folder of another repository, which does not have these files
    shutil.copytree(shallow, inner)
    for folder in (shallow, inner):
        monkeypatch.chdir(folder)
        clone = next(check_clone())
        assert (
            clone.name == "clone" and not clone.ok and clone.needed and "DVC needs a clone, not a ZIP" in clone.detail
        )


def test_the_doctor_minds_a_site_cache_that_others_can_change(checked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.ok for check in check_site_cache()] == [True]
    (checked / "public").mkdir()
    (checked / "public").chmod(0o1777)
    for path in ("public", "public/dvc"):  # the folder itself, and one that DVC would make in it
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(checked / path))
        (check,) = check_site_cache()
        assert not check.ok and check.needed and "others can write to it" in check.detail


@pytest.mark.slow
@pytest.mark.skipif(not NANOTRON.exists(), reason="no .nanotron; run `make nanotron`")
def test_the_doctor_looks_into_nanotrons_environment(checked: Path) -> None:
    (checked / "requirements.lock").write_text("")
    set_recipe(checked, backend="nanotron")
    set_compute(checked, python=str(NANOTRON))
    mark, detail = findings()["nanotron"]
    assert mark == "ok" and detail.startswith("0.2, on ")


def test_the_doctor_passes_a_wrong_setting_on(checked: Path) -> None:
    (checked / "requirements.lock").write_text("")
    set_recipe(checked, learning_rate=-1)
    assert "train.learning_rate: input should be greater than 0" in findings("settings missing")["settings"][1]


@pytest.mark.slow
def test_scripts_read_it_as_json(checked: Path) -> None:
    (checked / "requirements.lock").write_text("")
    entries = json.loads(cosmo(app, "--json"))
    assert {"name": "packages", "ok": True, "detail": "as in requirements.lock", "needed": True} in entries

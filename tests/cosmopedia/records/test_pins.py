"""A file of one's own is pinned by its content: an edit stops the run until `cosmo pin` takes it."""

import shutil
from pathlib import Path

import pytest
import yaml

from cosmopedia.cli.pin import app
from cosmopedia.core.errors import ConfigError
from cosmopedia.execution.settings import check_settings_once
from cosmopedia.records.reading import read_records
from stages.generator.demonstrations import read_demonstrations
from stages.tokenize_corpus.tokenizer_files import find_tokenizer
from tests.support.command_line import cosmo
from tests.support.prompt_rows import write_model

ROW = '{"prompt": "What is rain?", "text": "Water that falls."}\n'


@pytest.fixture
def profile(empty_folder: Path) -> Path:
    """A profile that names four local things, none of them pinned."""
    (empty_folder / "my").mkdir()
    (empty_folder / "my/books.jsonl").write_text('{"text": "One."}\n', encoding="utf-8")
    (empty_folder / "my/demos.jsonl").write_text(ROW, encoding="utf-8")
    write_model(empty_folder)
    shutil.copytree(empty_folder / "models/generator", empty_folder / "my/model")
    content = {
        "sources": {"openstax": {"dataset": "my/books.jsonl", "subset": None, "split": None, "revision": None}},
        "embed": {"model": "my/model", "revision": None},
        "generator": {"train": {"demonstrations": "my/demos.jsonl"}},
        "tokenize_corpus": {"tokenizer": "my/model"},
        "benchmarks": {"tasks": {"boolq": {"dataset": "data/samples/boolq.jsonl", "revision": None}}},
    }
    (empty_folder / "profiles").mkdir()
    (empty_folder / "profiles/own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (empty_folder / "params.yaml").write_text("profile: own\n", encoding="utf-8")
    (empty_folder / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    (empty_folder / "compute").symlink_to(Path(__file__).parents[3] / "compute")
    return empty_folder / "profiles/own.yaml"


def test_an_edited_file_stops_every_run_until_it_is_pinned_again(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_settings_once()
    assert capsys.readouterr().err.count("is not pinned, so DVC does not notice") == 3  # the folder is named twice
    assert cosmo(app).endswith("4 revisions written") and cosmo(app).endswith("0 revisions written")
    content = yaml.safe_load(profile.read_text())
    pin = content["sources"]["openstax"]["revision"]
    assert pin.startswith("sha256:") and content["benchmarks"]["tasks"]["boolq"]["revision"] is None
    check_settings_once()

    Path("my/books.jsonl").write_text('{"text": "Two."}\n', encoding="utf-8")
    Path("my/model/tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError) as stopped:
        check_settings_once()
    assert "my/books.jsonl is sha256:" in str(stopped.value) and f"the profile pins {pin}" in str(stopped.value)
    assert "my/model is sha256:" in str(stopped.value) and "`cosmo pin`" in str(stopped.value)
    with pytest.raises(ConfigError, match="the profile pins"):
        read_records("my/books.jsonl", None, None, pin)
    with pytest.raises(ConfigError, match="the profile pins"):
        find_tokenizer(content["tokenize_corpus"]["tokenizer"])
    assert cosmo(app).endswith("3 revisions written")
    check_settings_once()
    assert yaml.safe_load(profile.read_text())["sources"]["openstax"]["revision"] != pin


def test_a_path_with_its_pin_behind_it_is_read(profile: Path) -> None:
    cosmo(app)
    named = yaml.safe_load(profile.read_text())["generator"]["train"]["demonstrations"]
    assert named.startswith("my/demos.jsonl@sha256:") and read_demonstrations(named)[0].prompt == "What is rain?"
    Path("my/demos.jsonl").write_text(ROW * 2, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"my/demos\.jsonl is sha256:"):
        read_demonstrations(named)


def test_a_pinned_file_that_is_missing_is_named(profile: Path) -> None:
    cosmo(app)
    Path("my/books.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"my/books\.jsonl does not exist"):
        check_settings_once()

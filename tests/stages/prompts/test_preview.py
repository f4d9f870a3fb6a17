"""preview: what it shows is what is sent, whether or not a stage has run."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from cosmopedia.core.errors import ClusterError, ConfigError
from stages.prompts import __main__ as prompts
from stages.prompts.cosmo_preview import app
from tests.support.command_line import cosmo
from tests.support.fake_tgi import FakeTgi, text_of
from tests.support.prompt_rows import write_model
from tests.support.prompt_sources import passage, repository, source_rows

ROOT = Path(__file__).parents[3]
SHOWN = re.compile(r"--- (\S+), \w+ for \w+\n(.*?)\n\n(?=--- |\Z)", re.DOTALL)


@pytest.fixture
def fresh(empty_folder: Path) -> Path:
    """The repository's own settings, templates and samples; no stage has run."""
    for name in ("prompts", "profiles", "curation", "params.yaml"):
        (empty_folder / name).symlink_to(ROOT / name)
    (empty_folder / "data").mkdir()
    (empty_folder / "data/samples").symlink_to(ROOT / "data/samples")
    return empty_folder


def show(*words: object) -> dict[str, str]:
    """Seed id -> prompt, as they are printed."""
    return dict(SHOWN.findall(cosmo(app, *words).rpartition("\n")[0] + "\n"))


def test_it_shows_the_prompts_that_the_stage_writes(empty_folder: Path) -> None:
    repository(empty_folder, {"web": source_rows("web", [" ".join(passage(n)) for n in range(40)])})
    prompts.main()
    made = dict(pl.read_parquet("data/prompts/web-blogpost.parquet").select("seed_id", "prompt").iter_rows())
    shown = show("web", "blogpost", "-k", 12)
    assert len(shown) == 12 and shown.items() <= made.items()
    assert show("web", "blogpost", "-k", 12, "--seed", 5).keys() != shown.keys()
    as_json = json.loads(cosmo(app, "web", "blogpost", "-k", 12, "--json"))
    assert {row["seed_id"]: row["prompt"] for row in as_json["prompts"]} == shown


@pytest.mark.parametrize("cell", ["web wikihow_college", "openstax researchers", "khanacademy textbook"])
def test_without_any_stage_it_reads_the_profiles_dataset(fresh: Path, cell: str) -> None:
    shown = CliRunner().invoke(app, cell.split())
    assert shown.stdout.count("\n--- ") == 2 and "the sources stage has not run" in shown.stderr
    assert ("the topics stage has not run" in shown.stderr) == cell.startswith("web")


def test_with_an_endpoint_it_sends_them_in_the_chat_template(fresh: Path) -> None:
    write_model(fresh)
    with FakeTgi() as server:
        out = cosmo(app, "web", "wikihow", "-k", 2, "--chat", "--endpoint", server.url)
        asked = sorted(server.asked)
    assert len(asked) == 2 and all(prompt.startswith("[user] ") for prompt in asked)
    for prompt, seed in server.answered:
        assert prompt in out and text_of(prompt, seed) in out


@pytest.mark.slow
def test_a_server_that_is_down_or_serves_another_model_is_named(fresh: Path) -> None:
    write_model(fresh)
    with pytest.raises(ClusterError, match=r"no completion \(connection\).*is the server up"):
        cosmo(app, "web", "wikihow", "-k", 1, "--endpoint", "http://127.0.0.1:9")
    with FakeTgi(model_id="other-7b") as server, pytest.raises(ClusterError, match="serves other-7b"):
        cosmo(app, "web", "wikihow", "-k", 1, "--endpoint", server.url)
    with pytest.raises(ConfigError, match=r"--endpoint\.url"):
        cosmo(app, "web", "wikihow", "-k", 1, "--endpoint", "gpu1:8080")


@pytest.mark.slow
def test_wrong_names_are_refused_with_the_right_ones(fresh: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown source 'news'.*web, stanford"):
        cosmo(app, "news", "x", "-k", 1)
    with pytest.raises(ConfigError, match=r"web has no style 'sonnet'.*blogpost, blogpost_college"):
        cosmo(app, "web", "sonnet", "-k", 1)
    with pytest.raises(ConfigError, match=r"sources\.ready\.dataset is null"):
        cosmo(app, "ready", "as_is", "-k", 1)
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prompts"]["styles"]["grid"]["web"]["sonnet"] = {"format": "f", "audience": "a", "share": 1.0}
    (fresh / "params.yaml").unlink()
    (fresh / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prompts/web/sonnet\.txt does not exist"):
        cosmo(app, "web", "sonnet", "-k", 1)
    assert "prompts/web/sonnet.txt (missing)" in cosmo(app, "--list")
    with pytest.raises(ConfigError, match="wants a source and a style"):
        cosmo(app, "web")


def test_the_list_has_every_template(fresh: Path) -> None:
    listed = cosmo(app, "--list")
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "prompts").glob("*/*.txt")}
    assert files == {line.split()[-1] for line in listed.splitlines()[1:]} and "missing" not in listed
    assert {"cosmopedia  yes", "grid        no", "rephrase    no"} <= set(re.findall(r"\w+ +(?:yes|no)\b", listed))
    assert {cell["template"] for cell in json.loads(cosmo(app, "--list", "--json"))} == files


def test_data_cannot_command_a_terminal(empty_folder: Path) -> None:
    repository(empty_folder, {"wikihow": source_rows("wikihow", ["Clear \x1b[2J \u202e the screen"])})
    assert r"Clear \x1b[2J \u202e the screen" in cosmo(app, "wikihow", "article", "-k", 1)

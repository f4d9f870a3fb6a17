"""`cosmo pin` writes commits into profiles, keeps comments, and never invents one."""

from pathlib import Path

import pytest
import yaml

from cosmopedia.cli.pin import app, pin_profile, references
from cosmopedia.core.errors import ConfigError
from tests.support.command_line import cosmo

ROOT = Path(__file__).parents[3]
PROFILE = """# a profile
sources:
  web: {dataset: HuggingFaceFW/fineweb, split: train, revision: main} # the web
  openstax: {dataset: data/samples/openstax, revision: null}
generator:
  model: org/model # which model
  revision: {pinned}
"""


def test_every_unpinned_hub_reference_gets_its_commit_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PROFILE.replace("{pinned}", "f" * 40), encoding="utf-8")
    asked = []

    def resolve(kind: str, name: str, revision: str | None) -> str:
        asked.append((kind, name, revision))
        return "a" * 40

    assert pin_profile(path, resolve) == 1 and asked == [("dataset", "HuggingFaceFW/fineweb", "main")]
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert content["sources"]["web"]["revision"] == "a" * 40 and content["generator"]["revision"] == "f" * 40
    assert "# the web" in text and "# which model" in text and text.startswith("# a profile")
    assert pin_profile(path, resolve) == 0


@pytest.mark.parametrize("profile", ["laptop", "cluster"])
def test_every_hub_id_of_a_profile_has_a_revision_that_can_be_pinned(profile: str) -> None:
    content = yaml.safe_load((ROOT / f"profiles/{profile}.yaml").read_text(encoding="utf-8"))
    found = {name for _, _, name in references(content)}
    assert {"HuggingFaceFW/fineweb", "math-ai/AutoMathText", "teknium/OpenHermes-2.5", "cais/mmlu"} <= found
    assert content["generator"]["model"] in found and content["embed"]["model"] in found


def test_a_hub_that_does_not_answer_leaves_the_profile_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PROFILE.replace("{pinned}", "main"), encoding="utf-8")

    def resolve(kind: str, name: str, revision: str | None) -> str:
        raise ConfigError(f"{name} cannot be had")

    with pytest.raises(ConfigError, match="cannot be had"):
        pin_profile(path, resolve)
    assert path.read_text(encoding="utf-8") == PROFILE.replace("{pinned}", "main")


def test_it_pins_the_profiles_that_are_named(empty_folder: Path) -> None:
    (empty_folder / "profiles").mkdir()
    pinned = PROFILE.replace("{pinned}", "f" * 40).replace("revision: main", f"revision: {'a' * 40}")
    (empty_folder / "profiles/p.yaml").write_text(pinned, encoding="utf-8")
    assert cosmo(app) == cosmo(app, "p") == "0 revisions written"
    with pytest.raises(ConfigError, match="unknown profile q; known profiles: p"):
        cosmo(app, "q")

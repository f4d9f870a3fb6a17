"""The repository's own params with the profile smoke, for tests that change some of them."""

import shutil
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SMOKE = "profiles/smoke.yaml"
OWN_PARAMS = ("params.yaml", SMOKE)


def text_of(name: str) -> str:
    """The text of one of OWN_PARAMS; params.yaml names the profile smoke."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text.replace("profile: rehearsal", "profile: smoke", 1) if name == "params.yaml" else text


def own_params(name: str) -> dict[str, Any]:
    """The content of one of OWN_PARAMS."""
    return yaml.safe_load(text_of(name))


OWN_MIX = tuple(own_params(name)["mix"] for name in OWN_PARAMS)  # params.yaml's section and the profile's


def copy_chat_patterns(folder: Path) -> None:
    """Give a folder the repository's curation/chat.yaml, which clean and pilot read."""
    (folder / "curation").mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "curation/chat.yaml", folder / "curation/chat.yaml")


def write_params(*contents: dict[str, Any]) -> None:
    """Write the content of each of OWN_PARAMS below the current folder."""
    for name, content in zip(OWN_PARAMS, contents, strict=True):
        Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")

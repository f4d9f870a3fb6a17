"""What docs/pipeline.md says of reruns, "What reruns", is what DVC does: of every input, and of every stage's outs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from cosmopedia.cli import deps
from cosmopedia.sweeps.definition import Arm
from cosmopedia.sweeps.sharing import Stage, signatures, stages_of
from cosmopedia.sweeps.worktrees import set_params
from tests.support.sweep_repository import git

ROOT = Path(__file__).parents[2]
PROFILE = f"profiles/{yaml.safe_load((ROOT / 'params.yaml').read_text(encoding='utf-8'))['profile']}.yaml"
SECTION = (ROOT / "docs/pipeline.md").read_text(encoding="utf-8").split("\n## What reruns\n")[1].split("\n## ")[0]
IMPORTERS, READERS = "those that import it", "those that read the profile"


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the section's table whose first cell is `head`."""
    lines = SECTION[SECTION.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def pattern_of(text: str) -> re.Pattern[str]:
    """Of `data/samples/<source>/*` or `params.yaml: cluster`; a key stands for what is below it, too."""
    parts = re.split(r"(\*|<\w+>)", text)
    regex = "".join(
        ".*" if part == "*" else "(?P<name>[^/.]+)" if part.startswith("<") else re.escape(part) for part in parts
    )
    return re.compile(regex + (r"(\..*)?" if ": " in text else ""))


ROWS = [(pattern_of(span), cells[1]) for cells in table("you change") for span in re.findall("`([^`]+)`", cells[0])]


@cache
def stages() -> list[Stage]:
    return stages_of(ROOT)


@cache
def shared_by(stage: str) -> list[str]:
    return deps.shared_code(stage, ROOT)


def imports(stage: str, item: str) -> bool:
    """Whether a stage imports a file, or something of the folder that is one dep with it."""
    return bool({item, Path(item).parent.as_posix()} & set(shared_by(stage.split("@")[0])))


def names_of(text: str) -> set[str]:
    """The stages of a cell: "sources" are nine, "nothing" is none."""
    parts = set() if text == "nothing" else set(text.split(", "))
    if "sources" in parts:
        parts = parts - {"sources"} | {stage.name for stage in stages() if stage.name.startswith("sources@")}
    return parts


def specified(item: str) -> set[str] | None:
    """The stages that the table names for an input; None where no row matches."""
    for pattern, cell in ROWS:
        if match := pattern.fullmatch(item):
            if cell == IMPORTERS:
                return {stage.name for stage in stages() if imports(stage.name, item)}
            if cell == READERS:
                return {stage.name for stage in stages() if any(file == PROFILE for file, _ in stage.params)}
            return names_of(re.sub(r"<\w+>", match.groupdict().get("name", ""), cell))
    return None


def leaves(content: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def inputs() -> dict[str, Arm]:
    """Every tracked file and every leaf of the params in use, as the table names it, and the change of it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    files = set(listed.stdout.splitlines()) - {"params.yaml", PROFILE}
    with Repo(str(ROOT)) as repo:
        seen = {file for file in files if not repo.dvcignore.is_ignored_file(str(ROOT / file))}
    found = {file: Arm(file, {}, {file: "another"} if file in seen else {}) for file in files}
    for file, name in (("params.yaml", "params.yaml"), (PROFILE, "profile")):
        content = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
        found |= {f"{name}: {key}": Arm(key, {file: {key: "another"}}) for key in leaves(content)}
    return found | {"params.yaml: profile": Arm("profile", {PROFILE: dict.fromkeys(content, "another")})}


@pytest.mark.slow
def test_every_input_reruns_the_stages_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deps, "imports_of", cache(deps.imports_of))  # each file is read once, not for every stage
    alone = [replace(stage, after=frozenset()) for stage in stages()]
    wrong, used = [], set()
    for item, change in inputs().items():
        direct = {name for name, changes in signatures(alone, change).items() if changes}
        wanted = specified(item)
        used.add(next((number for number, (pattern, _) in enumerate(ROWS) if pattern.fullmatch(item)), None))
        if direct != wanted:
            wrong.append(f"{item}: the table says {wanted}, DVC's graph {direct}")
    assert not wrong, "\n".join(wrong)
    assert used == set(range(len(ROWS))), "rows of no input: " + str([ROWS[n] for n in set(range(len(ROWS))) - used])


@pytest.mark.slow
def test_the_outs_of_every_stage_reach_the_stages_of_the_table() -> None:
    written = {name: names_of(before) for name, before in table("stage")}
    assert written == {stage.name: set(stage.after) for stage in stages() if stage.after}


@pytest.mark.slow
def test_dvc_itself_finds_three_edits_where_the_table_says(empty_folder: Path) -> None:
    """In a fresh clone without data, so that only what has another hash than in dvc.lock counts."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, name)
    git(empty_folder, "init", "-q")
    locked = set(yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"])
    edits = {"prompts": "prompts/web/blogpost.txt", "data/samples/heldout": "data/samples/heldout/stories.jsonl"}
    for file in edits.values():
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write("\n")
    set_params(Path("params.yaml"), {"generate.seed": 20})
    found = {(stage, name) for stage, name in modified() if stage in locked}  # another one has never run
    for dep, item in (edits | {"params.yaml: generate.seed": "params.yaml: generate.seed"}).items():
        assert {stage for stage, name in found if name == dep} == (specified(item) or set()) & locked != set(), item


def modified() -> set[tuple[str, str]]:
    """(stage, dep or param) of what `dvc status` calls modified; what is deleted was never pulled."""
    with Repo() as repo:
        status = repo.status()
    found = set()
    for stage, parts in status.items():
        for part in parts:
            for dep, state in part.get("changed deps", {}).items() if isinstance(part, dict) else ():
                states = (
                    {dep: state} if isinstance(state, str) else {f"{dep}: {key}": one for key, one in state.items()}
                )
                found |= {(stage, name) for name, one in states.items() if one == "modified"}
    return found

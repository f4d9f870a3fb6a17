"""deps: write each stage's code deps into dvc.yaml.

DVC does not see imports. A stage depends on its folder and on each shared file that the folder's code imports,
directly or through another file. It depends on nothing in cosmopedia/execution/, which only decides where and how work
runs, nor on what only that imports. Data deps stay as they are.

A folder of `WHOLE` is one dep of each stage that imports something of it. DVC reads all of dvc.lock at each command
and writes all of it after each stage, and such a folder's files would be a third of its lines.

A matrix stage whose folder has a file per item (stages/sources/readers/web.py for the item web),
depends on its own files one by one and on its item's file, so that an edit of one reruns one item. The files say which
items there are: a new one is added to the matrix, and its outs to the deps of a stage that reads those of all items.

What a stage reads comes first, then its own code, then the library's, a line for each of its folders: three inputs are
not lost among thirty files of code, and an edit changes a line or two.
"""

import ast
import io
import re
from difflib import ndiff
from functools import cache
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer

from cosmopedia.cli.output import Json, new_app, print_json
from cosmopedia.core.errors import ConfigError

app = new_app()
PACKAGES = ("stages", "cosmopedia")
MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
EXECUTION = "cosmopedia/execution/"
WIDTH = 120
WHOLE = ("cosmopedia/core", "cosmopedia/records", "cosmopedia/tables")  # whoever imports one file imports most of them


def module_file(name: str, root: Path = Path()) -> Path | None:
    """The file of a module of this repository, or None when the name is none."""
    path = root / Path(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def imports_of(file: Path, root: Path = Path()) -> set[str]:
    """Modules of this repository that a file imports anywhere, also inside functions, or starts as a process."""
    names = modules_named(file.read_text(encoding="utf-8"))
    return {name for name in names if module_file(name, root)}


@cache
def modules_named(text: str) -> frozenset[str]:
    """The names in a Python text that look like modules of this repository. Most files belong to many stages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # python -m stages.train.nanotron.worker
    return frozenset(filter(MODULE.fullmatch, names))


def stage_files(stage: str, root: Path = Path()) -> list[Path]:
    """The Python files of a stage's folder, without what it brings to the `cosmo` command."""
    files = (root / "stages" / stage).rglob("*.py")
    return sorted(path for path in files if not path.name.startswith("cosmo_"))


def shared_code(stage: str, root: Path = Path()) -> list[str]:
    """What a stage's code imports from elsewhere, room by room: folders of `WHOLE`, and files but `__init__.py`."""
    own = stage_files(stage, root)
    seen = set(own)
    waiting = list(own)
    while waiting:
        for name in imports_of(waiting.pop(), root):
            file = module_file(name, root)
            if file and file not in seen and not file.relative_to(root).as_posix().startswith(EXECUTION):
                seen.add(file)
                waiting.append(file)
    names = {file.relative_to(root).as_posix() for file in seen - set(own) if file.name != "__init__.py"}
    folders = {name: Path(name).parent.as_posix() for name in names}
    names = {folder if folder in WHOLE else name for name, folder in folders.items()}
    return sorted((name for name in names if not name.startswith(f"stages/{stage}/")), key=lambda n: (room_of(n), n))


def own_deps(stage: str, matrix: dict[str, list[str]], root: Path = Path()) -> list[str]:
    """The deps on a stage's own code: its folder, or each file, with one entry for those that stand for items.

    Adds to the matrix the items that have a file and are not listed, and removes those whose file is gone.
    """
    files = [file.relative_to(root) for file in stage_files(stage, root) if file.name != "__init__.py"]
    for key, items in matrix.items():
        folders = {file.parent for file in files if file.stem in items}
        if len(folders) == 1:
            (folder,) = folders
            names = [file.stem for file in files if file.parent == folder]
            items[:] = [item for item in items if item in names] + [name for name in names if name not in items]
            shared = [file.as_posix() for file in files if file.parent != folder]
            return [f"{folder.as_posix()}/${{item.{key}}}.py", *shared]
    return [f"stages/{stage}"]


def follow_matrix(stages: dict[str, Any], name: str, before: list[str], key: str) -> None:
    """Bring the stages that depend on an out of every item in step with a matrix whose items were `before`."""
    after = stages[name]["matrix"][key]
    for out in stages[name]["outs"]:
        former, wanted = ([out.replace(f"${{item.{key}}}", item) for item in items] for items in (before, after))
        for stage in stages.values():
            deps = stage["deps"]
            if len(set(former)) > 1 and set(former) <= set(deps):
                first = min(map(deps.index, former))
                others = [dep for dep in deps if dep not in former]
                deps[:] = [*others[:first], *sorted(wanted), *others[first:]]


def is_code(dep: str) -> bool:
    return dep.startswith(tuple(f"{package}/" for package in PACKAGES))


def with_code_deps(text: str, root: Path = Path()) -> str:
    """dvc.yaml's text with the code deps that the imports ask for, and everything else as it was."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    content: dict[str, Any] = yaml.load(text)
    for name, stage in content["stages"].items():
        matrix = stage.get("matrix", {})
        before = {key: list(items) for key, items in matrix.items()}
        own = own_deps(name, matrix, root)
        for key, items in before.items():
            follow_matrix(content["stages"], name, items, key)
        deps = stage["deps"]
        for index in reversed(range(len(deps))):
            if is_code(deps[index]):
                del deps[index]
        deps.extend([*own, *shared_code(name, root)])
    lists = {f"deps of {name}": flow(stage["deps"]) for name, stage in content["stages"].items()}
    for name, stage in content["stages"].items():
        stage["deps"] = f"deps of {name}"
    out = io.StringIO()
    yaml.dump(content, out)
    return re.sub(r"(?<=^    deps:) (deps of .+)$", lambda line: lists[line[1]], out.getvalue(), flags=re.MULTILINE)


def flow(deps: list[str]) -> str:
    """A stage's deps as a YAML list in brackets, on one line, or a line (or more) for each room."""
    names = [f'"{dep}"' if set(dep) & set("{}[],") else dep for dep in deps]
    if len("    deps: []" + ", ".join(names)) <= WIDTH:
        return f" [{', '.join(names)}]"
    rooms = (", ".join(room) + "," for _, room in groupby(names, key=room_of))
    lines = [line for room in rooms for line in wrap(room, WIDTH - 7, break_long_words=False, break_on_hyphens=False)]
    return "\n      [" + "\n       ".join(lines).removesuffix(",") + "]"


def room_of(dep: str) -> str:
    """What a dep shares a line with: the inputs, the stage's own code, the library's folders and files, a folder's."""
    parts = dep.strip('"').split("/")
    if parts[0] not in PACKAGES:
        return ""
    return "/".join(parts[:2]) if parts[0] == "cosmopedia" and len(parts) > 2 else parts[0]


def differences(before: str, after: str) -> list[str]:
    """The lines that would go ("- ...") and come ("+ ...")."""
    return [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


def write_deps(path: Path = Path("dvc.yaml")) -> list[str]:
    """Bring dvc.yaml up to date; returns the lines that changed."""
    before = path.read_text(encoding="utf-8")
    after = with_code_deps(before, path.parent)
    if after != before:
        path.write_text(after, encoding="utf-8")
    return differences(before, after)


@app.command(epilog="Example: cosmo deps --check")
def deps(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 2 if anything would change.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write each stage's code deps into dvc.yaml: its folder, and the shared code that its own imports."""
    if check:
        text = Path("dvc.yaml").read_text(encoding="utf-8")
        changed = differences(text, with_code_deps(text))
    else:
        changed = write_deps()
    if as_json:
        print_json({"changed": changed})
    else:
        typer.echo("\n".join([*changed, "" if changed else "dvc.yaml is up to date"]).strip())
    if check and changed:
        raise ConfigError("dvc.yaml's code deps are not what the code imports; run `cosmo deps`")

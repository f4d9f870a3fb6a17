"""Edits of comments and docstrings, which change no output, and for which DVC would rerun a stage all the same.

DVC compares the bytes of a dep. Here the version that dvc.lock names is looked up in git and compared with the present
one as Python reads them: where every file has the same syntax tree without docstrings, dvc.lock gets the present hash.
"""

import ast
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmopedia.core.files import write_text
from cosmopedia.core.params import read_yaml
from cosmopedia.execution.lock_repair import LOCK
from cosmopedia.execution.workdir import seen_by_dvc

CODE = ("stages/", "cosmopedia/")
REVISIONS = 30  # of a dep that are looked through


def accept_comment_edits() -> list[str]:
    """Write the present hashes of code that differs in comments and docstrings alone into dvc.lock; its paths."""
    if not LOCK.is_file():
        return []
    text, accepted = LOCK.read_text(encoding="utf-8"), []
    for path, digest in sorted(_locked_code(read_yaml(LOCK))):
        present = _present_files(Path(path))
        if not present or (found := _digest(path, present)) == digest:
            continue
        former = next((files for files in _former_files(path) if _digest(path, files) == digest), None)
        if former is not None and former.keys() == present.keys() and _same_code(former, present):
            text = _with_hash(text, path, digest, found, present)
            accepted.append(path)
    if accepted:
        write_text(LOCK, text)
    return accepted


def _locked_code(lock: dict[str, Any]) -> set[tuple[str, str]]:
    """(path, hash) of each code dep."""
    deps = [dep for stage in lock["stages"].values() for dep in stage.get("deps", [])]
    return {(dep["path"], dep["md5"]) for dep in deps if dep["path"].startswith(CODE) and "md5" in dep}


def _present_files(path: Path) -> dict[str, bytes]:
    """The files of a dep by their paths."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.as_posix(): file.read_bytes() for file in files if file.is_file() and seen_by_dvc(file)}


def _former_files(path: str) -> Iterator[dict[str, bytes]]:
    """The files of a dep in the commits that changed it, the newest first."""
    for revision in _git("log", f"-{REVISIONS}", "--format=%H", "--", path).decode().split():
        names = _git("ls-tree", "-r", "--name-only", revision, "--", path).decode().splitlines()
        yield {name: _git("show", f"{revision}:./{name}") for name in names if seen_by_dvc(Path(name))}


def _git(*command: str) -> bytes:
    return subprocess.run(["git", *command], capture_output=True, check=False).stdout


def _digest(path: str, files: dict[str, bytes]) -> str:
    """DVC's hash of a file or folder."""
    digests = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    if files.keys() == {path}:
        return digests[path]
    entries = [{"md5": digests[name], "relpath": name.removeprefix(f"{path}/")} for name in files]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _same_code(former: dict[str, bytes], present: dict[str, bytes]) -> bool:
    return all(
        content == former[name] or (name.endswith(".py") and _tree(content) == _tree(former[name]) is not None)
        for name, content in present.items()
    )


def _tree(content: bytes) -> str | None:
    """A module's syntax tree without docstrings, as text; None when it does not parse."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _with_hash(text: str, path: str, old: str, new: str, files: dict[str, bytes]) -> str:
    """dvc.lock's text with another hash and size for a dep."""
    size = sum(map(len, files.values()))
    entry = rf"(- path: {re.escape(path)}\n +hash: md5\n +md5: ){re.escape(old)}(\n +size: )\d+"
    return re.sub(entry, rf"\g<1>{new}\g<2>{size}", text)

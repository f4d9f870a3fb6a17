"""DVC parses a params file once per command, and never sees another text than the one that is there. dvc.lock has the
bytes that DVC alone would write."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dvc.fs import localfs
from dvc.utils import serialize

from tests.support.documents import ROOT

DVCS_OWN = serialize.load_yaml, serialize.modify_yaml
LOCK = "".join(re.split(r"^(?=  \S)", (ROOT / "dvc.lock").read_text(encoding="utf-8"), flags=re.MULTILINE)[:4])


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as `dvc` loads it; what it changes is as before afterwards."""
    load, modify = DVCS_OWN
    monkeypatch.setitem(serialize.LOADERS, ".yaml", load)
    monkeypatch.setattr(serialize, "modify_yaml", modify)
    import cosmopedia.execution.dvc_yaml as module

    serialize.LOADERS[".yaml"], serialize.modify_yaml = load, modify  # the import may have been the first
    return importlib.reload(module)


def test_a_text_is_parsed_once_and_each_caller_has_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    parsed, parse = list[str](), serialize.parse_yaml
    monkeypatch.setattr(serialize, "parse_yaml", lambda text, path: parsed.append(text) or parse(text, path))
    importlib.reload(module)
    file = tmp_path / "params.yaml"
    file.write_text("a: [1]\n")
    first = serialize.load_path(str(file), localfs)
    first["a"].append(2)
    assert serialize.load_path(str(file), localfs) == {"a": [1]}
    file.write_text("a: [3]\n")
    assert serialize.load_path(str(file), localfs) == {"a": [3]}
    assert parsed == ["a: [1]\n", "a: [3]\n"]
    file.write_bytes(b"\xff")
    with pytest.raises(serialize.EncodingError):
        serialize.load_path(str(file), localfs)


def entry(command: str) -> dict[str, Any]:
    """A stage as DVC writes it; strings that want quotes, or more than a line."""
    return {
        "cmd": command,
        "deps": [{"path": "a b", "md5": "1234e5", "size": 3}],
        "params": {"p": {"x": "1.0", "y": None}},
    }


def run(data: dict[str, Any], **stages: Any) -> None:
    """What DVC does when stages are finished."""
    data["stages"] = data.get("stages", {})
    data["stages"].update(stages)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda data: None,
    "a stage is as before": lambda data: run(data, **{"sources@web": dict(data["stages"]["sources@web"])}),
    "a stage changes": lambda data: run(data, **{"sources@stanford": entry("python -m " + "stage " * 40)}),
    "a stage is new": lambda data: run(data, last=entry("one\ntwo: #3")),
    "a stage goes": lambda data: data["stages"].pop("sources@web"),
    "all stages go": lambda data: data["stages"].clear(),
    "a dataset comes": lambda data: data.update(datasets=[{"name": "d"}]),
    "the schema changes": lambda data: data.update(schema="3.0"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "text",
    [
        LOCK,
        LOCK.replace("    cmd:", "    # by hand\n    cmd:", 1),
        LOCK.replace("stages:", "# by hand\nstages:"),
        LOCK.replace("  sources@web:", "  'sources@web':"),
        LOCK + "datasets:\n- name: e\n",
    ],
    ids=["DVC's own", "comment", "comment above", "quotes", "datasets"],
)
def test_dvc_lock_has_the_bytes_that_dvc_would_write(
    tmp_path: Path, module: ModuleType, text: str, change: str
) -> None:
    written = []
    for name, modify in (("one", DVCS_OWN[1]), ("two", module.modify_yaml)):
        path = tmp_path / name / "dvc.lock"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        with modify(str(path), fs=localfs) as data:
            CHANGES[change](data)
        written.append(path.read_text(encoding="utf-8"))
    assert written[0] == written[1]


def test_a_finished_stage_costs_no_other_stages_lines(
    tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, dumped = tmp_path / "dvc.lock", list[str]()
    dumps = serialize.dumps_yaml
    monkeypatch.setattr(serialize, "dumps_yaml", lambda content: dumped.append(dumps(content)) or dumped[-1])
    path.write_text(LOCK, encoding="utf-8")
    for command in ("first", "second"):  # the first time each stage is compared with what DVC would write
        dumped.clear()
        with module.modify_yaml(str(path), fs=localfs) as data:
            run(data, **{"sources@stanford": entry(command)})
    assert "second" in path.read_text(encoding="utf-8")
    assert ["sources@web" in text for text in dumped] in (
        [False],
        [False, False],
    )  # the changed one's old and new lines


@pytest.mark.parametrize(
    "text", [None, "", "schema: '2.0'\n", "stages: [\n", "schema: '2.0'\nstages:\n  a:\n    cmd: [\n"]
)
def test_what_is_no_lock_is_dvcs_business(tmp_path: Path, module: ModuleType, text: str | None) -> None:
    ends = []
    for name, modify in (("one", DVCS_OWN[1]), ("two", module.modify_yaml)):
        path = tmp_path / name / "dvc.lock"
        path.parent.mkdir()
        if text is not None:
            path.write_text(text, encoding="utf-8")
        try:
            with modify(str(path), fs=localfs) as data:
                run(data, new=entry("new"))
            ends.append(path.read_text(encoding="utf-8"))
        except serialize.YAMLFileCorruptedError:
            ends.append("corrupted")
    assert ends[0] == ends[1]

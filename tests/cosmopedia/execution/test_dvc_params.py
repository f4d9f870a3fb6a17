"""DVC parses a params file once per command, and never sees another text than the one that is there."""

import importlib
from pathlib import Path

import pytest
from dvc.fs import localfs
from dvc.utils import serialize


def test_a_text_is_parsed_once_and_each_caller_has_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(serialize.LOADERS, ".yaml", serialize.load_yaml)  # the test puts back what DVC had
    parsed, parse = list[str](), serialize.parse_yaml
    monkeypatch.setattr(serialize, "parse_yaml", lambda text, path: parsed.append(text) or parse(text, path))
    import cosmopedia.execution.dvc_params as module

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

"""A person's text file: what is accepted, what is refused, in every place that reads one."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import not_in_git
from cosmopedia.core.params import read_yaml
from cosmopedia.core.text import has_controls, read_text, without_controls
from cosmopedia.execution.compute import EndpointSpec
from stages.label.answers import read_label_template
from stages.prompts.templates import read_template
from stages.topics.decisions import read_curation

ROOT = Path(__file__).parents[3]
BOM = b"\xef\xbb\xbf"
TOPIC = b"topics:\n  - {topic: Geology, decision: keep, reason: teaches, labels: [], keywords: [basalt]}\n"
PLACES: dict[str, tuple[bytes, Callable[[Path], object]]] = {  # where it lies: content, what reads it
    "prompts/wikihow/a.txt": (
        b"# a header\nWrite about $title.\n",
        lambda root: read_template("wikihow", "a", root / "prompts"),
    ),
    "curation/label.txt": (
        b"# a header\nName it: $examples\n",
        lambda root: read_label_template(root / "curation/label.txt").template,
    ),
    "curation/topics.yaml": (TOPIC, lambda root: read_curation(root / "curation/topics.yaml")),
    "params.yaml": (b"profile: smoke\n", lambda root: read_yaml(root / "params.yaml")),
    "token": (b"secret\n", lambda root: EndpointSpec(url="http://a", token_file=root / "token").token()),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes, Callable[[], object]]:
    content, read = PLACES[request.param]
    (path := tmp_path / request.param).parent.mkdir(parents=True, exist_ok=True)
    return path, content, lambda: read(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(place: tuple[Path, bytes, Callable]) -> None:
    path, content, read = place
    path.write_bytes(content)
    plain = read()
    for other in (BOM + content, content.replace(b"\n", b"\r\n"), BOM + content.replace(b"\n", b"\r\n")):
        path.write_bytes(other)
        assert read() == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Größe".encode("latin-1"), "is not UTF-8: byte 2"),
        ("text".encode("utf-16"), "is not UTF-8 but UTF-16"),
        (b"a\nb\r\nc\x00d", ":3: control character U\\+0000"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer.*git lfs pull"),
    ],
)
def test_what_is_no_text_is_refused_everywhere(
    place: tuple[Path, bytes, Callable], content: bytes, message: str
) -> None:
    path, _, read = place
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path.name}{message}|{path.name} {message}"):
        read()


def test_control_characters_that_part_words_leave_a_space() -> None:
    assert without_controls("a\x00b\x1b[31m\tc\x0cd\x85e\r\nf\x7f é") == "ab[31m\tc d e\r\nf é"


@pytest.mark.parametrize("code", [*range(0x180), 0x2028, 0xD800, 0x10FFFF])
def test_a_control_character_is_one_by_unicode_s_category(code: int) -> None:
    wanted = unicodedata.category(chr(code)) == "Cc" and chr(code) not in "\t\n\r"
    assert has_controls(f"text {chr(code)} ü") == wanted == (without_controls(chr(code)) != chr(code))


def test_every_template_of_the_repository_is_text() -> None:
    for path in [*(ROOT / "prompts").rglob("*.txt"), *(ROOT / "curation").iterdir()]:
        assert read_text(path) or path.suffix == ".jsonl"  # reviewed clusters: none yet


def test_a_file_that_only_the_main_checkout_has_is_one_to_add(
    empty_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = tmp_path / "main"
    (main / "prompts/wikihow").mkdir(parents=True)
    (main / "prompts/wikihow/new.txt").write_text("Write about $title.")
    not_in_git(Path("prompts/wikihow/new.txt"))
    monkeypatch.setenv("DVC_ROOT", str(main))
    with pytest.raises(ConfigError, match=r"does not track .*git add prompts/wikihow/new\.txt"):
        read_template("wikihow", "new")
    with pytest.raises(ConfigError, match="does not exist, but prompts"):
        read_template("wikihow", "other")

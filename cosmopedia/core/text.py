"""Text: one way to read a file that people write, and what no text has, control characters and half characters."""

import re
from pathlib import Path

from cosmopedia.core.errors import ConfigError

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # Unicode's Cc other than tab and line ends
ASCII_CONTROLS = bytes(code for code in range(128) if CONTROLS.match(chr(code)))
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # what git leaves in place of a file that was not fetched


def has_controls(text: str) -> bool:
    """Whether there is any control character in a text; four times as fast as the pattern where there is none."""
    encoded = text.encode("utf-8", "surrogatepass")
    if b"\xc2" not in encoded and len(encoded.translate(None, ASCII_CONTROLS)) == len(encoded):  # C2: U+0080 to U+00BF
        return False
    return CONTROLS.search(text) is not None


def without_controls(text: str) -> str:
    """`text` without control characters; those that part words (form feed, next line) become a space."""
    return CONTROLS.sub(lambda match: " " if match[0].isspace() else "", text)


def half_pair(text: str) -> str | None:
    """The first half of a surrogate pair in a text, "U+D83D", which UTF-8 cannot hold; None when there is none.

    JSON can write one ("\\ud83d"), where something has cut a text between the halves of an emoji.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return None


def read_text(path: Path) -> str:
    """A text file that a person edits: UTF-8 with or without a byte-order mark; line ends become "\\n".

    `ConfigError` names what is no text: another encoding, a git-lfs pointer, a control character and its line.
    """
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ConfigError(f"{path} is a git-lfs pointer, not the file; run git lfs pull")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{path} is not UTF-8 but UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: byte {error.start}; save it as UTF-8") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if control := CONTROLS.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise ConfigError(f"{path}:{line}: control character U+{ord(control[0]):04X}; remove it")
    return text

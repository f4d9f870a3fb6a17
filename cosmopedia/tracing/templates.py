"""The commit in which a template got the text that a prompt was made from."""

from collections.abc import Callable
from typing import Any

from cosmopedia.execution.versions import Version, git

COMMITS = 200  # of one template's history that are looked at


def template_origin(
    version: Version, path: str, wanted: str, template_hash: Callable[[str, str], str | None]
) -> dict[str, Any]:
    """`commit`, `date` and `subject` of the commit that last changed a template to the text that was sent.

    A row has the hash of that text. Commits up to the version's are looked at, the newest first; one that only edits
    the comment above the text is none. `state`: "committed"; "not committed", where only the file itself has the text;
    "not found". `edited_since`: whether the template has another text now.
    """
    here = ("-C", str(version.folder))
    commits = git(*here, "log", f"-{COMMITS}", "--format=%H%x09%cs%x09%s", version.commit or "HEAD", "--", path)
    origin: list[str] | None = None
    newest = ""
    for number, line in enumerate(commits.splitlines()):
        entry = line.split("\t", 2)
        text = git(*here, "show", f"{entry[0]}:./{path}")
        same = bool(text) and template_hash(text, path) == wanted
        newest = text if number == 0 else newest
        if same:
            origin = entry
        elif origin:
            break
    file = version.folder / path
    current = file.read_text(encoding="utf-8") if not version.commit and file.is_file() else newest
    as_now = bool(current) and template_hash(current, path) == wanted
    if origin:
        commit, date, subject = origin
        return {"state": "committed", "commit": commit, "date": date, "subject": subject, "edited_since": not as_now}
    return {"state": "not committed" if as_now else "not found", "edited_since": not as_now}

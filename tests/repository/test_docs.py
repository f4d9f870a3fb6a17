"""The pages say what is there: relative links and paths of the repository exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "perf/README.md", ROOT / "data/samples/README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
TREES = ("stages/", "cosmopedia/", "compute/", "perf/", "tests/", "docs/", "prompts/", "profiles/", "curation/")
HISTORY = {"stages/sources.py"}  # what a decision note says of an older tree
PATTERN = re.compile(r"[<*{$]|\.\.\.")  # a path with a part left open


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    spans = [span for span in SPAN.findall(text) if span.startswith(TREES) and " " not in span]
    paths = [span for span in spans if not PATTERN.search(span) and span not in HISTORY]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"{page.relative_to(ROOT)} names what does not exist: {missing}"

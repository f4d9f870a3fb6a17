"""faithful: verdicts on documents, what they come to, and what clean and pilot make of them."""

import json
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import DataError
from cosmopedia.faithfulness.settings import FaithfulParams
from cosmopedia.tables.contracts import DOCUMENT, FAITHFUL, REMOVED
from cosmopedia.tables.parquet import read_table
from stages.clean.__main__ import main as clean
from stages.clean.rules import Unfaithful as Verdicts
from stages.faithful.__main__ import main
from stages.pilot.prompt_draw import DrawnPrompt
from stages.pilot.shares import Written
from stages.pilot.unfaithful import Unfaithful
from tests.support.documents import ROOT, byte_tokenizer, document, repository, write_documents

EXTRACT = "The bridge at Sarn is 120 metres long and was opened on 4 May 1894 by Margaret Ashdown."
PROMPT = f'Here is an extract from a web page:\n\n"{EXTRACT}"\n\nWrite 700 words.'
TRUE = "Margaret Ashdown opened the bridge at Sarn in May 1894, and it is about 394 feet long. " * 3
FALSE = "In 1912 the bridge in Brenn, 340 metres long, was opened by Gustav Holt, and in 1931 it fell. " * 3
CELL = "web-rephrase_faq"


def write_corpus(folder: Path) -> list[str]:
    """Two documents of a cell that quotes, one of a cell that does not; the ids of the first two."""
    for name, text in (("web/rephrase_faq", '"$extract"\n\nWrite 700 words.'), ("wikihow/article", "About $title.")):
        path = folder / f"prompts/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "Here is an extract from a web page:\n\n" if "$extract" in text else ""
        path.write_text(f"# a comment\n{head}{text}")
    rows = [
        document(text=text, prompt=PROMPT, template=f"prompts/{CELL.replace('-', '/')}.txt") for text in (TRUE, FALSE)
    ]
    write_documents(folder / f"data/generate/{CELL}.parquet", [{**row, "topic": "Bridges"} for row in rows])
    plain = document(text=TRUE + "End.", prompt="About tea.", template="prompts/wikihow/article.txt")
    write_documents(folder / "data/generate/wikihow-article.parquet", [plain])
    return [row["completion_id"] for row in rows]


@pytest.mark.slow
def test_a_verdict_names_what_the_quoted_text_lacks(empty_folder: Path):
    good, bad = write_corpus(empty_folder)
    repository(empty_folder, "faithful")
    assert main().startswith(
        "2 documents judged in 1 cells: 15 of 27 numbers, dates and names (56%) are in no source; 1 doc"
    )
    rows = {row["completion_id"]: row for row in read_table(f"data/faithful/{CELL}.parquet", FAITHFUL).to_pylist()}
    assert rows[good]["spans"] == [] and rows[good]["unfaithful"] == []
    spans = rows[bad]["spans"][:5]
    assert [span["text"] for span in spans] == ["1912", "Brenn", "340 metres", "Gustav Holt", "1931"]
    assert all(FALSE[span["start"] : span["end"]] == span["text"] for span in spans)
    assert rows[bad]["unfaithful"] == ["max_unsupported_share"]
    assert read_table("data/faithful/wikihow-article.parquet", FAITHFUL).num_rows == 0
    metrics = json.loads(Path("metrics/faithful.json").read_text())
    assert set(metrics["cells"]) == {CELL} and set(metrics["topics"]) == {"Bridges"}
    assert metrics["topics"]["Bridges"]["unsupported"] == {"number": 3, "unit": 0, "date": 6, "name": 6}
    low, high = metrics["unsupported_share"]["interval"]
    assert 0 <= low < metrics["unsupported_share"]["value"] < high <= 1

    repository(empty_folder, "faithful", enabled=False)
    assert main().startswith("off") and list(Path("data/faithful").iterdir()) == []
    repository(empty_folder, "faithful", invented={"name": ["*-rephrase_*"]}, cells=["web-*"])
    main()
    row = next(
        r for r in read_table(f"data/faithful/{CELL}.parquet", FAITHFUL).to_pylist() if r["completion_id"] == bad
    )
    assert {span["kind"] for span in row["spans"]} == {"number", "date"} and row["names"] == 0


def test_a_prompt_of_an_edited_template_is_refused(empty_folder: Path):
    write_corpus(empty_folder)
    repository(empty_folder, "faithful")
    path = Path("prompts/web/rephrase_faq.txt")
    path.write_text(path.read_text().replace("700", "800"))
    with pytest.raises(DataError, match="run prompts and generate again"):
        main()


@pytest.mark.slow
def test_clean_drops_flags_or_keeps_what_is_unfaithful(empty_folder: Path):
    good, bad = write_corpus(empty_folder)
    repository(empty_folder, "faithful")
    main()
    byte_tokenizer(empty_folder / "models/generator")
    lax = {"min_tokens": 1, "language": None, "repetition": NO_REPETITION}
    for action, kept in (("drop", {good}), ("flag", {good, bad})):
        repository(empty_folder, "clean", unfaithful=action, **lax)
        clean()
        rows = read_table(f"data/clean/{CELL}.parquet", DOCUMENT, ["completion_id"])["completion_id"].to_pylist()
        assert set(rows) == kept
        counted = json.loads(Path("metrics/clean.json").read_text())["unfaithful"]
        assert counted == {"action": action, "documents": {CELL: 1}}
        removed = read_table("data/clean/removed/removed.parquet", REMOVED).to_pylist()
        assert [(row["completion_id"], row["reason"]) for row in removed] == [(bad, "unfaithful")] * (action == "drop")
    assert Verdicts(Path("data/faithful")).exceeded("no-cell", bad) == []


OWN = yaml.safe_load((ROOT / "profiles/smoke.yaml").read_text(encoding="utf-8"))["clean"]["repetition"]
NO_REPETITION = {name: {} if isinstance(value, dict) else None for name, value in OWN.items()}


def test_the_pilot_measures_the_share_of_texts_beyond_the_same_limits(empty_folder: Path):
    write_corpus(empty_folder)
    section = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["faithful"]
    drawn = [DrawnPrompt(f"{CELL} (general)", "a", PROMPT, "prompts/web/rephrase_faq.txt")]
    texts = [Written(TRUE, PROMPT), Written(FALSE, PROMPT)]
    found = Unfaithful(drawn, FaithfulParams.model_validate(section))(texts)
    assert found.share == 0.5 and found.example == "1912, Brenn, 340 metres"
    elsewhere = FaithfulParams.model_validate({**section, "cells": ["openstax-*"]})
    assert Unfaithful(drawn, elsewhere)(texts).share == 0

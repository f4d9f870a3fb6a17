"""Promises of the preset grounded: passages arrive as they are, and rows without any are counted."""

from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import read_yaml
from cosmopedia.corpus.references import quoted_articles
from cosmopedia.tables.contracts import DOCUMENT, PASSAGE, PROMPT, REFERENCES, RETRIEVED
from cosmopedia.tables.parquet import read_rows, write_table
from stages.prompts import __main__ as prompts
from stages.prompts.render import read_cell
from stages.prompts.slots import SLOTS
from stages.prompts.styles import Style
from tests.support.documents import document
from tests.support.prompt_sources import ROOT, passage, repository, source_rows

HOSTILE = '[1] A: costs $5, $extract, ${title} $$ "quoted" {x} %s \\n'
ROWS = 12


def made(empty_folder: Path, **changes: object) -> list[dict]:
    """The prompts of a repository in which `prompts.styles` are ours, with these params."""
    if not Path("prompts").exists():
        repository(empty_folder, {"web": source_rows("web", [" ".join(passage(n)) for n in range(ROWS)])}, **changes)
        found = [f"web/{n:04d}" for n in range(0, ROWS, 3)]
        rows = [{"row_id": r, "passages": [f"p/{r[-4:]}"], "scores": [2.0], "references": HOSTILE} for r in found]
        for source in SLOTS:
            write_table(f"data/retrieve/{source}.parquet", rows if source == "web" else [], RETRIEVED)
    params = read_yaml(Path("params.yaml"))
    params["prompts"] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    prompts.main()
    return [*read_rows(sorted(Path("data/prompts").glob("*.parquet")), PROMPT)]


def references() -> dict[str, list[str]]:
    tables = sorted(Path("data/prompts/references").glob("*.parquet"))
    return {row["prompt_id"]: row["passages"] for row in read_rows(tables, REFERENCES)}


def test_a_row_without_passage_has_no_grounded_prompt_and_is_counted(empty_folder: Path) -> None:
    rows = made(empty_folder, presets=["grounded"], without_passage="skip")
    assert len(rows) == 4 * 4 and all(HOSTILE in row["prompt"] for row in rows)
    assert references() == {row["prompt_id"]: [f"p/{row['seed_id'][-4:]}"] for row in rows}
    metrics = read_yaml(Path("metrics/prompts.json"))
    assert metrics["removed"]["without_passage"] == 4 * 8 and metrics["removed"]["not_drawn"] == 0
    assert metrics["quoting_passages"]["web-grounded_wikihow"] == 4


def test_or_it_has_the_prompt_of_the_plain_style_with_its_template(empty_folder: Path) -> None:
    rows = made(empty_folder, presets=["grounded"], without_passage="plain")
    grounded = {(row["seed_id"], row["style"]): row for row in rows}
    plain = {(row["seed_id"], f"grounded_{row['style']}"): row for row in made(empty_folder, presets=["cosmopedia"])}
    assert len(rows) == 4 * ROWS
    for key, row in grounded.items():
        if int(key[0][-4:]) % 3:
            same = ("prompt", "template", "template_hash", "topic_named", "format")
            assert {name: row[name] for name in same} == {name: plain[key][name] for name in same}
        else:
            assert row["template"] == f"prompts/web/{key[1]}.txt" and HOSTILE in row["prompt"]
            assert row["topic_named"] == plain[key]["topic_named"]  # both presets name the topics of the same rows


def test_two_presets_can_have_the_same_rows(empty_folder: Path) -> None:
    limits = {"without_passage": "skip_everywhere", "per_cell": 2}
    grounded = made(empty_folder, presets=["grounded"], **limits)
    plain = made(empty_folder, presets=["cosmopedia"], **limits)
    both = [{(row["seed_id"], row["style"].removeprefix("grounded_")) for row in rows} for rows in (grounded, plain)]
    assert both[0] == both[1] and len(both[0]) == 8
    assert not Path("data/prompts/references").exists() and "quoting_passages" not in read_yaml(
        Path("metrics/prompts.json")
    )


def test_without_the_preset_nothing_of_retrieve_is_read(empty_folder: Path) -> None:
    repository(empty_folder, {"web": source_rows("web", [" ".join(passage(n)) for n in range(3)])})
    prompts.main()  # there is no data/retrieve
    assert not Path("data/prompts/references").exists()


def test_a_grounded_style_without_a_plain_one_is_refused_where_it_would_be_needed(empty_folder: Path) -> None:
    (empty_folder / "prompts/wikihow").mkdir(parents=True)
    Path("prompts/wikihow/facts.txt").write_text("Write about $title from $references.")
    style = Style(format="f", audience="a", share=1.0)
    assert read_cell("wikihow", "facts", style, "skip").plain is None
    with pytest.raises(ConfigError, match=r"prompts/wikihow/facts\.txt quotes \$references too"):
        read_cell("wikihow", "facts", style, "plain")


def test_every_grounded_style_is_made_after_a_style_of_the_preset_cosmopedia() -> None:
    styles = read_yaml(ROOT / "params.yaml")["prompts"]["styles"]
    for source, several in styles["grounded"].items():
        for name, style in several.items():
            assert style == styles["cosmopedia"][source][name.removeprefix("grounded_")]
            text = (ROOT / f"prompts/{source}/{name}.txt").read_text(encoding="utf-8")
            assert "$references" in text and "Use only these facts" in text


def test_the_articles_that_a_corpus_quotes_are_counted_once_per_document(empty_folder: Path) -> None:
    documents = Path("data/decontaminate/web-grounded_wikihow.parquet")
    rows = [document(completion_id=f"{n}-0", prompt_id=str(n), style="grounded_wikihow") for n in range(3)]
    write_table(documents, rows, DOCUMENT)
    assert quoted_articles([documents]).is_empty()
    same = {"text": "t", "title": "T", "revision": "r", "licence": "CC-BY-SA-3.0"}
    passages = [{"passage_id": f"{a}/{n}", "article": a, **same} for a in "ab" for n in range(2)]
    write_table("data/knowledge/passages.parquet", passages, PASSAGE)
    quotes = [{"prompt_id": "0", "passages": ["a/0", "a/1"]}, {"prompt_id": "1", "passages": ["a/0", "b/1"]}]
    quotes.append({"prompt_id": "gone", "passages": ["b/0"]})  # its document was removed
    write_table("data/prompts/references/web-grounded_wikihow.parquet", quotes, REFERENCES)
    found = quoted_articles([documents]).select("article", "documents", "licence").rows()
    assert found == [("a", 2, "CC-BY-SA-3.0"), ("b", 1, "CC-BY-SA-3.0")]

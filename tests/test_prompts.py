"""Prompts: templates are data, draws belong to rows, nothing in the data can break a template."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from stages.errors import ConfigError
from stages.prompting.slots import SLOTS, covered_sentence, slot_columns
from stages.prompting.templates import parse_template, read_template
from stages.prompts import PromptsParams, Style, build_cell, drawn

ROOT = Path(__file__).parents[1]
STYLES = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["prompts"]["styles"]
ODD = [
    'He said "no" {x} ${y} $z %s',
    "\U0001f600 emoji",
    "\u0645\u0631\u062d\u0628\u0627 rtl",
    "w" * 100_000,
    "tail\nlines",
]


def seeds(texts: list[str], topic: str | None = "Geology") -> pl.DataFrame:
    columns = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    rows = [
        {"row_id": f"web/{n}", "original_id": str(n), "text": t, "topic": topic, **columns}
        for n, t in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema_overrides={"topic": pl.String, "url": pl.String})


def params(**changes) -> PromptsParams:
    return PromptsParams(
        **{"seed": 1, "topic_probability": 0.5, "extract_chars": 200, "per_cell": None, "styles": {}, **changes}
    )


def build(rows: pl.DataFrame, settings: PromptsParams) -> pl.DataFrame:
    template = read_template("web", "wikihow", ROOT / "prompts")
    style = Style(format="wikihow", audience="general", share=1.0)
    return build_cell(slot_columns("web", rows, settings.extract_chars), "wikihow", style, template, settings)


@pytest.mark.parametrize(
    ("source", "style"), [(source, style) for source, styles in STYLES.items() for style in styles]
)
def test_every_style_has_a_template_that_uses_only_its_sources_slots(source: str, style: str) -> None:
    template = read_template(source, style, ROOT / "prompts")
    rendered = template.render({slot: f"<{slot}>" for slot in SLOTS[source]})
    assert "$" not in rendered and not rendered.startswith("#")


def test_a_prompt_does_not_depend_on_order_or_sharding() -> None:
    rows = seeds([f"Text number {n} about basalt and its columns." for n in range(50)])
    whole = build(rows, params()).sort("prompt_id")
    parts = pl.concat([build(rows[n::7].reverse(), params()) for n in range(7)]).sort("prompt_id")
    assert whole.equals(parts)


def test_data_cannot_break_a_template() -> None:
    for text, prompt in zip(ODD, build(seeds(ODD), params(extract_chars=100_000))["prompt"], strict=True):
        assert f'"{text}"' in prompt


def test_an_extract_ends_with_a_word() -> None:
    text = "The columns of the Giant's Causeway are mostly hexagonal"
    extracts = [slot_columns("web", seeds([text]), n)["slot.extract"][0] for n in range(45, len(text) + 3)]
    assert set(extracts) == {
        "The columns of the Giant's Causeway are",
        "The columns of the Giant's Causeway are mostly",
        text,
    }
    assert slot_columns("web", seeds(["x" * 500]), 100)["slot.extract"][0] == "x" * 100


def test_the_topic_is_named_at_the_set_rate_and_recorded() -> None:
    rows = build(seeds([f"Row {n} of a large set of texts." for n in range(4000)]), params(topic_probability=0.3))
    clause = rows["prompt"].str.contains(', within the context of "Geology"', literal=True)
    assert clause.to_list() == rows["topic_named"].to_list()
    assert abs(clause.sum() - 1200) < 3.3 * (4000 * 0.3 * 0.7) ** 0.5
    assert (
        build(seeds(["No topic here at all."], topic=None), params(topic_probability=1.0))["prompt"]
        .is_not_null()
        .all()
    )


def test_a_share_or_limit_takes_the_same_rows_of_any_order() -> None:
    rows = seeds([f"Row {n}" for n in range(300)])
    taken = drawn(rows, "wikihow", 0.5, 40, 9)["row_id"].sort()
    assert taken.equals(drawn(rows.reverse(), "wikihow", 0.5, 40, 9)["row_id"].sort()) and len(taken) == 40
    assert drawn(rows, "wikihow", 0.0, None, 9).is_empty()


def test_the_covered_sentence_is_right_for_first_second_and_later_units() -> None:
    assert covered_sentence([], [], "chapter", "lesson") == ""
    assert (
        covered_sentence([], ["A"], "chapter", "lesson")
        == ' We have already covered, in this chapter, the lesson "A".'
    )
    assert covered_sentence(["One"], ["A", "B"], "chapter", "lesson") == (
        ' We have already covered the chapter "One". In this chapter, the lessons "A", "B" came before.'
    )
    many = covered_sentence([str(n) for n in range(9)], [], "chapter", "lesson")
    assert '"8" and 3 before them' in many and '"2"' not in many


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# note\nWrite on $extrct now", r"t\.txt:2: '\$extrct' is no slot of this source, which offers \$extract"),
        ("Costs $5 for $extract", r"t\.txt:1: '\$5'"),
        ("# only a note\n", r"t\.txt holds no text to send"),
        ("Write something.", r"t\.txt uses no slot"),
    ],
)
def test_a_wrong_template_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_template(text, Path("t.txt"), ("extract",))
    assert (
        parse_template("It costs $$5: ${extract}s", Path("t.txt"), ("extract",)).render({"extract": "pen"})
        == "It costs $5: pens"
    )


def test_a_style_without_template_names_the_templates_there_are() -> None:
    with pytest.raises(ConfigError, match=r"prompts/web/sonnet\.txt does not exist.*textbook_academic"):
        read_template("web", "sonnet", ROOT / "prompts")


def test_templates_may_change_without_another_prompt_id() -> None:
    style = Style(format="wikihow", audience="general", share=1.0)
    rows = slot_columns("web", seeds(["One text."]), 100)
    one, two = (
        build_cell(rows, "w", style, parse_template(t, Path("t"), ("extract",)), params())
        for t in ("A $extract", "B $extract")
    )
    assert one["prompt_id"].equals(two["prompt_id"]) and not one["template_hash"].equals(two["template_hash"])


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prompts"]["styles"]["news"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    command = [sys.executable, "-m", "stages.prompts"]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == ConfigError.status and "unknown source 'news'" in result.stderr

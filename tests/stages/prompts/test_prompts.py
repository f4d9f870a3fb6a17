"""Prompts: templates are data, draws belong to rows, nothing in the data can break a template."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml

from cosmopedia.core.errors import ConfigError, DataError
from stages.prompts import __main__ as prompts
from stages.prompts.ids import digests, prompt_ids
from stages.prompts.near_duplicates import ComparisonKey, comparison_key, near_duplicates, save_band_keys
from stages.prompts.render import Cell, digests_of, drawn, order_of, prepared, prompts_of
from stages.prompts.slots import covered_sentence, offered, slot_columns
from stages.prompts.source_rows import on_disk
from stages.prompts.styles import PromptsParams, Style
from stages.prompts.templates import Template, parse_template, read_template
from tests.support.prompt_sources import (
    CELLS,
    ODD,
    ROOT,
    STYLES,
    odd_rows,
    params,
    passage,
    repository,
    source_rows,
    with_duplicates,
)

OPENINGS = (
    "Once upon a time",
    "The sun hung low in the sky",
    "Welcome",
    "Have you ever",
    "In today's",
    "In recent years",
    "A few years",
    "A few months",
    "It was a",
    "Hello",
    "Here is",
    "Here are",
)  # fmt: skip  (what instruction-tuned models begin with when nobody forbids it)


def seeds(texts: list[str], topic: str | None = "Geology") -> pl.DataFrame:
    columns = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    columns["references"] = "[1] Basalt: a dark rock."
    rows = [
        {"row_id": f"web/{n}", "original_id": str(n), "text": t, "topic": topic, **columns}
        for n, t in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema_overrides={"topic": pl.String, "url": pl.String})


WIKIHOW = Style(format="wikihow", audience="general", share=1.0)


def cell(source: str, name: str, style: Style = WIKIHOW, template: Template | None = None) -> Cell:
    return Cell(source, name, style, template or read_template(source, name, ROOT / "prompts"))


def build(rows: pl.DataFrame, settings: PromptsParams, of: Cell | None = None) -> pl.DataFrame:
    """A cell's prompts, in the order of the rows."""
    of = of or cell("web", "wikihow")
    return pl.DataFrame(prompts_of(prepared(of.source, rows, settings.extract_chars), of, settings))


@pytest.mark.parametrize(("source", "style"), CELLS)
def test_every_template_carries_odd_data_unharmed(source: str, style: str) -> None:
    template = (of := cell(source, style)).template
    header = (ROOT / "prompts" / source / f"{style}.txt").read_text(encoding="utf-8").splitlines()[0]
    settings = params(extract_chars=1000, topic_probability=1.0)
    for topic in ('A "topic"', "", None):
        rows = slot_columns(source, odd_rows(source, ODD, topic), 1000)
        made = build(odd_rows(source, ODD, topic), settings, of)
        for row, seed in zip(made.iter_rows(named=True), rows.iter_rows(named=True), strict=True):
            held = {slot: seed[f"slot.{slot}"] for slot in template.slots if slot != "in_topic"}
            clause = ', within the context of "A "topic""' if topic and "in_topic" in template.slots else ""
            assert row["prompt"] == template.render({**held, "in_topic": clause})
            assert (row["topic_named"], row["prompt"].count(", within the context of")) == (bool(clause), bool(clause))
            assert header.startswith("# ") and header not in row["prompt"]
            if "extract" in held:
                whole, extract = seed["text"].strip(), held["extract"]
                assert f'"{extract}"' in row["prompt"] and whole.startswith(extract) and len(extract) <= 1000
                assert whole == extract or len(whole.split()) == 1 or whole[len(extract)].isspace()
            elif "covered" not in held:
                assert row["seed_data"] in row["prompt"]


@pytest.mark.parametrize(("source", "style"), [cell for cell in CELLS if cell[0] != "ready"])
def test_every_template_says_how_not_to_begin(source: str, style: str) -> None:
    text = read_template(source, style, ROOT / "prompts").render(dict.fromkeys(offered(source), ""))
    assert sum(f'"{opening}' in text for opening in OPENINGS) >= 2


def test_the_grid_has_every_format_for_every_audience() -> None:
    audiences = {"young_children", "high_school_students", "college_students", "researchers"}
    cells = {(name.split("_")[0], style["audience"]) for name, style in STYLES["grid"]["web"].items()}
    assert cells == {(f, a) for f in ("textbook", "blogpost", "wikihow") for a in audiences}
    books = {*STYLES["cosmopedia"]["openstax"], *STYLES["grid"]["openstax"]}
    quoting = {name for name in books if "extract" in read_template("openstax", name, ROOT / "prompts").slots}
    assert len(books) == 8 and books - quoting == {f"{name}_no_reference" for name in quoting}


def test_templates_of_one_format_share_little_but_the_format() -> None:
    bodies = {c: set(_lines(read_template("web", c, ROOT / "prompts").pieces)) for c in STYLES["grid"]["web"]}
    frame = set.intersection(*bodies.values())
    for one in bodies:
        for two in bodies:
            assert one == two or bodies[one] & bodies[two] == frame


def _lines(pieces: tuple[str, ...]) -> list[str]:
    return [line.strip() for piece in pieces for line in piece.splitlines() if len(line.strip()) > 30]


@pytest.mark.parametrize(("source", "style"), CELLS)
def test_every_style_has_a_template_that_uses_only_its_sources_slots(source: str, style: str) -> None:
    template = read_template(source, style, ROOT / "prompts")
    rendered = template.render({slot: f"<{slot}>" for slot in offered(source)})
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
    untold = build(seeds(["No topic here at all."], topic=None), params(topic_probability=1.0))
    assert untold["prompt"].is_not_null().all() and not untold["topic_named"].any()


def test_each_template_names_the_topic_as_often() -> None:
    rows = seeds([f"Row {n} of a large set." for n in range(3000)])
    for name in (style for source, style in CELLS if source == "web"):
        made = build(rows, params(), of := cell("web", name))
        expected = 1500 if "in_topic" in of.template.slots else 0
        assert abs(made["topic_named"].sum() - expected) <= bool(expected) * 4 * (3000 * 0.25) ** 0.5, name


def test_a_share_or_limit_takes_the_same_rows_of_any_order() -> None:
    rows, half = seeds([f"Row {n}" for n in range(300)]), Style(format="f", audience="a", share=0.5)

    def taken(rows: pl.DataFrame, style: Style, limit: int | None) -> list[str]:
        ordered = prepared("web", rows, 100)
        ordered = ordered.take(pa.array(order_of(ordered)))
        mask = drawn([digests_of(ordered)], cell("web", "wikihow", style), params(per_cell=limit))
        return ordered["row_id"].filter(pa.array(mask)).to_pylist()

    assert taken(rows, half, 40) == taken(rows.reverse(), half, 40) and len(taken(rows, half, 40)) == 40
    assert set(taken(rows, half, 40)) < set(taken(rows, half, None)) and 110 < len(taken(rows, half, None)) < 190
    assert taken(rows, Style(format="f", audience="a", share=0.0), None) == []


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
    one, two = (
        build(seeds(["One text."]), params(), cell("web", "w", WIKIHOW, parse_template(t, Path("t"), ("extract",))))
        for t in ("A $extract", "B $extract")
    )
    assert one["prompt_id"].equals(two["prompt_id"]) and not one["template_hash"].equals(two["template_hash"])


@pytest.mark.slow
def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prompts"]["styles"]["cosmopedia"]["news"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    command = [sys.executable, "-m", "stages.prompts"]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == ConfigError.status and "unknown source 'news'" in result.stderr


@pytest.mark.slow
def test_counts_add_up_from_source_row_to_prompt(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web, books = source_rows("web", with_duplicates(40)), source_rows("openstax", ODD)
    presets = ["cosmopedia", "grid", "rephrase"]
    repository(empty_folder, {"web": web, "openstax": books}, presets=presets, per_cell=30, extract_chars=1000)
    prompts.main()
    metrics = json.loads(Path("metrics/prompts.json").read_text())
    table = pl.read_csv("metrics/plots/prompts.csv")
    cells = {path.stem: pl.read_parquet(path) for path in Path("data/prompts").glob("*.parquet")}
    removed = pl.read_parquet("data/prompts/removed/removed.parquet")
    wanted = {f"{s}-{n}" for s, n in CELLS if s in ("web", "openstax") and not n.startswith("grounded_")}
    assert set(cells) == wanted == set(metrics["cells"])
    assert metrics["rows_in"] == len(web) * 22 + len(books) * 8
    assert metrics["rows_kept"] == table["prompts"].sum() == sum(map(len, cells.values()))
    assert removed["reason"].value_counts().sort("reason").rows() == [
        ("duplicate_prompt", metrics["removed"]["duplicate_prompt"]),
        ("near_duplicate_prompt", metrics["removed"]["near_duplicate_prompt"]),
    ]
    assert removed.height == table.select(pl.sum_horizontal("duplicates", "near_duplicates").sum()).item() > 10
    assert "warning" in (said := capsys.readouterr().err) and "web-" in said and "openstax" not in said


@pytest.mark.slow
def test_any_order_of_rows_gives_the_same_bytes(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(empty_folder, {"web": source_rows("web", with_duplicates(60))}, per_cell=50)
    made = []
    read = prompts.read_source_rows

    def shuffled(source: str, seed: int) -> Iterator[pl.DataFrame]:
        for rows in [pl.concat(batches)] if (batches := list(read(source))) else []:
            yield from rows.sample(fraction=1, shuffle=True, seed=seed).iter_slices(1 + 13 * seed)

    for seed in range(3):
        monkeypatch.setattr(prompts, "read_source_rows", lambda s, _, seed=seed: shuffled(s, seed))
        prompts.main()
        files = [*Path("data/prompts").rglob("*.parquet"), Path("metrics/prompts.json")]
        made.append({str(path): path.read_bytes() for path in files})
    assert made[0] == made[1] == made[2] and len(made[0]) == 6


def test_styles_that_are_off_cost_nothing_and_have_no_cell(empty_folder: Path) -> None:
    styles = json.loads(json.dumps(STYLES))
    styles["cosmopedia"]["web"]["wikihow"]["share"] = 0
    rows = {"web": source_rows("web", [" ".join(passage(n)) for n in range(5)])}
    repository(empty_folder, rows, styles=styles)
    Path("data/sources/openhermes.parquet").write_bytes(b"never read")
    for style in styles["cosmopedia"].pop("openhermes").values():
        style["share"] = 0
    assert prompts.PromptsParams(**{**params().model_dump(), "styles": styles}).chosen().keys() >= {"web", "ready"}
    Path("params.yaml").write_text(
        yaml.safe_dump({"profile": "p", "prompts": {**params().model_dump(), "styles": styles}}), encoding="utf-8"
    )
    assert "15 prompts in 3 cells" in prompts.main()
    assert not Path("data/prompts/web-wikihow.parquet").exists()


def test_a_style_stands_in_one_preset_only() -> None:
    style = {"format": "f", "audience": "a", "share": 1.0}
    twice = params(styles={"cosmopedia": {"web": {"x": style}}, "grid": {"web": {"x": style}}})
    with pytest.raises(ConfigError, match=r"web\.x in cosmopedia and grid"):
        twice.chosen()
    with pytest.raises(ConfigError, match="no style of the presets grid"):
        params(presets=["grid"], styles={"cosmopedia": {"web": {"x": style}}}).chosen()


def test_ready_made_prompts_are_sent_as_they_are(empty_folder: Path) -> None:
    repository(empty_folder, {"ready": source_rows("ready", ["  Write on $x, {y}.\n "])})
    prompts.main()
    (row,) = pl.read_parquet("data/prompts/ready-as_is.parquet").to_dicts()
    assert row["prompt"] == "  Write on $x, {y}.\n " and row["format"] == row["audience"] == "Write on $x, {y}."


def test_ready_made_prompts_count_under_their_own_format_and_audience(empty_folder: Path) -> None:
    rows = source_rows("ready", [f"Write on rock number {n}, please." for n in range(5)])
    kinds = [("story", "general"), ("blogpost", "researchers"), ("story", "general"), ("blogpost", "general")]
    for row, (kind, audience) in zip(rows, [*kinds, ("story", "general")], strict=True):
        row["context"] = json.dumps({"format": kind, "audience": audience, "seed_data": ""})
    repository(empty_folder, {"ready": rows})
    prompts.main()
    counted = pl.read_csv("metrics/plots/prompts.csv").select("format", "audience", "prompts").rows()
    assert counted == [("blogpost", "general", 1), ("blogpost", "researchers", 1), ("story", "general", 3)]
    metrics = json.loads(Path("metrics/prompts.json").read_text())
    assert metrics["by_format"] == {"blogpost": 2, "story": 3} and list(metrics["cells"]) == ["ready-as_is"]


def test_a_source_table_without_a_column_is_refused(empty_folder: Path) -> None:
    repository(empty_folder, {"web": source_rows("web", ["Some text."])})
    path = Path("data/sources/web.parquet")
    pl.read_parquet(path).drop("context", "licence").write_parquet(path)
    with pytest.raises(DataError, match=r"data/sources/web.parquet: source rows lacks .*context, licence;.* run the"):
        prompts.main()


def test_the_smallest_prompt_id_of_a_group_stays(empty_folder: Path) -> None:
    texts = with_duplicates(30)
    repository(empty_folder, {"web": source_rows("web", texts)}, topic_probability=0.0)
    prompts.main()
    removed = pl.read_parquet("data/prompts/removed/removed.parquet")["row_id"].to_list()
    group = [f"web/{n:04d}" for n in (0, 30, 31, 32)]  # one text four times
    for file in Path("data/prompts").glob("*.parquet"):
        made = pl.read_parquet(file)
        (stays,) = made.filter(pl.col("seed_id").is_in(group))["prompt_id"]
        gone = prompt_ids(digests(group), made["style"][0], made["audience"][0]).to_pylist()
        assert stays == min(gone) and sorted(gone)[1:] == [i for i in sorted(removed) if i in gone]


def found_in(texts: list[str], threshold: float = 0.8, names: list[str] | None = None) -> dict[int, int]:
    """Of texts in the order of their rows' digests the near duplicates, each with the one that it duplicates."""
    rows = seeds(texts).with_columns(title=pl.Series(names or [""] * len(texts)))
    rows = rows.with_columns(row_id=rows["row_id"].gather(np.argsort(digests(rows["row_id"])[:, 0])))
    key = ComparisonKey(("title",), "slot.extract")
    with TemporaryDirectory() as folder:
        found = on_disk("web", [rows], 10**6, Path(folder), lambda part: save_band_keys(part, key), lambda _: None)
        like = near_duplicates(found, key, np.ones(len(texts), dtype=bool), threshold)
    return {n: int(other) for n, other in enumerate(like) if other >= 0}


@pytest.mark.slow
def test_near_duplicates_are_those_that_brute_force_finds() -> None:
    dice, texts = random.Random(5), []
    for n in range(60):
        base = passage(n, dice.randint(1, 250))
        for changes in (0, 1, 3, 9):
            words = list(base)
            for _ in range(changes):
                words[dice.randrange(len(words))] = f"x{dice.randrange(10**6)}"
            texts.append(" ".join(words))
    sets = [{tuple(t.split()[i : i + 5]) for i in range(max(len(t.split()) - 4, 1))} for t in texts]
    like = lambda a, b: len(sets[a] & sets[b]) / len(sets[a] | sets[b])  # noqa: E731
    wanted = {b for b in range(len(texts)) if any(like(a, b) >= 0.8 for a in range(b))}
    found = found_in(texts)
    assert all(like(a, b) >= 0.8 and a < b for b, a in found.items())
    assert found.keys() == wanted and len(wanted) > 60


def test_rows_of_other_names_and_texts_without_words_are_no_duplicates() -> None:
    text = " ".join(passage(1))
    assert found_in([text, text, text], names=["Review", "review!", "Practice"]) == {1: 0}
    assert found_in(["\U0001f600", "\U0001f680", "", "", "\U0001f600"]) == {3: 2, 4: 0}
    assert found_in(["short text", "Short text!", "short texts"]) == {1: 0}
    assert found_in([text]) == {}
    assert found_in(["basalt", "granite"], names=["basalt", "granite"]) == {}  # a text that is its own title


def test_lessons_of_one_title_in_two_chapters_both_stay(tmp_path: Path) -> None:
    rows = odd_rows("khanacademy", ["Review", "Review "])
    rows = rows.with_columns(
        context=pl.Series([c.replace("Review", f"Part {n}") for n, c in enumerate(rows["context"])])
    )
    key = comparison_key(cell("khanacademy", "textbook").template.slots)
    found = on_disk("khanacademy", [rows], 100, tmp_path, lambda part: save_band_keys(part, key), lambda _: None)
    assert key.text == "" and (near_duplicates(found, key, np.ones(2, dtype=bool), 0.8) == -1).all()


@pytest.mark.slow
def test_looking_for_near_duplicates_is_cheap() -> None:
    texts = [" ".join(passage(n, 160)) for n in range(3000)]
    found_in(texts[:2])  # compiles, where no earlier run has
    started = time.process_time()
    assert found_in([*texts, texts[0]]) == {3000: 0}
    assert time.process_time() - started < 3  # 0.15 on a quiet core, 5 for 100,000


def test_a_subtopics_prompt_names_its_topic_and_a_topics_prompt_its_field_and_keywords() -> None:
    topic = {"field": "Arts", "topic": "Poetry", "subtopic": "", "keywords": ["haiku", "sonnets"]}
    subtopic = {"field": "Arts", "topic": "Poetry", "subtopic": "haiku", "keywords": []}
    rows = seeds(["", ""], None).with_columns(
        title=pl.Series(["Poetry", "haiku"]), context=pl.Series([json.dumps(topic), json.dumps(subtopic)])
    )
    slots = slot_columns("taxonomy", rows, 400)
    assert slots["slot.within"].to_list() == [', within "Arts"', ', within "Poetry"']
    assert slots["slot.touching"].to_list() == [" It may touch on haiku, sonnets.", ""]

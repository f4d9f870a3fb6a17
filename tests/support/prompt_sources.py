"""Source rows, odd ones and near duplicates, and a small repository that makes prompts of them."""

import json
from pathlib import Path

import polars as pl
import yaml

from cosmopedia.core.rng import draw_u64
from cosmopedia.tables.contracts import SOURCE, TOPIC_OF_ROW
from cosmopedia.tables.parquet import write_table
from stages.prompts.slots import SLOTS
from stages.prompts.styles import PromptsParams

ROOT = Path(__file__).parents[2]
STYLES = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["prompts"]["styles"]
CELLS = [(source, style) for sources in STYLES.values() for source, styles in sources.items() for style in styles]
ODD = [
    'He said "no" {x} ${y} $z %s',
    "\U0001f600 emoji",
    "\u0645\u0631\u062d\u0628\u0627 rtl",
    "w" * 100_000,
    "tail\nlines",
    "# no header {{ nor }} $$5 'single' \\n \\",
    "many words" * 9_000 + " of 90 kB",
    ("many words " * 9_000).strip(),
]


def params(**changes) -> PromptsParams:
    return PromptsParams(
        **{"seed": 1, "topic_probability": 0.5, "extract_chars": 200, "per_cell": None, "near_duplicate": 0.8}
        | {"goal_rate": 0.01, "without_passage": "skip", "presets": ["cosmopedia"], "styles": {}, **changes}
    )


def odd_rows(source: str, texts: list[str], topic: str | None = "Geology") -> pl.DataFrame:
    """SOURCE rows of any source whose every field is odd, with a topic and passages."""
    rows = []
    for n, text in enumerate(texts):
        name = text[:200].strip()
        context = dict.fromkeys(("course", "section", "unit", "chapter", "book", "format", "audience"), name)
        context |= dict.fromkeys(("field", "topic", "subtopic"), name)
        lists = {f"covered_{part}s": [name] for part in ("unit", "section", "chapter", "lesson")}
        lists |= {"trail": [name], "keywords": [name]}
        context = json.dumps({**context, **lists, "seed_data": name}, ensure_ascii=False)
        row = {"row_id": f"{source}/{n:04d}", "source": source, "original_id": str(n), "title": name, "text": text}
        found = {"references": text, "passages": [f"article/{n:04d}"]}
        row |= {"context": context, "url": None, "licence": "CC0-1.0", "revision": "r", "topic": topic}
        rows.append(row | found)
    return pl.DataFrame(rows, schema_overrides={"topic": pl.String, "url": pl.String})


def repository(folder: Path, sources: dict[str, list[dict]], **changes: object) -> None:
    """Templates, settings and source tables (web rows of one topic) in a folder."""
    (folder / "prompts").symlink_to(ROOT / "prompts")
    (folder / "profiles").mkdir()
    section = {**params().model_dump(), "styles": STYLES, **changes}
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "p", "prompts": section}), encoding="utf-8")
    (folder / "profiles/p.yaml").write_text("{prompts: {}}", encoding="utf-8")
    for source, rows in {**{source: [] for source in SLOTS}, **sources}.items():
        write_table(folder / f"data/sources/{source}.parquet", rows, SOURCE)
    topics = [{"row_id": row["row_id"], "cluster": 0, "topic": "Geology"} for row in sources.get("web", [])]
    write_table(folder / "data/topics/web.parquet", topics, TOPIC_OF_ROW)


def source_rows(source: str, texts: list[str]) -> list[dict]:
    return odd_rows(source, texts).select(SOURCE.schema.names).to_dicts()


def passage(number: int, words: int = 60) -> list[str]:
    """Words that no other number shares more than a few of."""
    return [f"w{draw_u64(7, number, n) % 5000}" for n in range(words)]


def with_duplicates(count: int) -> list[str]:
    """Texts of which the last three repeat the first: as it is, in capitals, with another word at the end."""
    texts = [" ".join(passage(n)) for n in range(count)]
    return [*texts, texts[0], texts[0].upper(), f"{texts[0]} more"]

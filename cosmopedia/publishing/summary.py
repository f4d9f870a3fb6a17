"""The public summary of training content that Article 53(1)(d) of the EU AI Act asks of providers of general-purpose
models, in the order of the AI Office's template of July 2025, filled in from metrics and settings.

What only a person knows is marked TO_ADD: who the provider is, what is claimed about rights, what the law makes of it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cosmopedia.cards import escaped, model_rows, rows, source_rows
from cosmopedia.core.errors import DataError
from cosmopedia.corpus.components import SYNTHETIC
from cosmopedia.publishing.checks import METRICS, metrics
from cosmopedia.records.pins import is_local

TO_ADD = "**[to add]**"
GENERATOR = Path("models/generator/generator.json")
SIZES = ((1e9, "less than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens"))


def training_summary() -> str:
    """The summary in Markdown. `DataError` when the pipeline has not been run."""
    mix, tokens = metrics("mix"), metrics("tokenize_corpus")
    components = mix["components"]
    parts = [
        "# Public summary of training content\n",
        f"Article 53(1)(d) of Regulation (EU) 2024/1689. {TO_ADD} marks what a person must fill in; nothing here was"
        " checked by a lawyer.\n",
        _general(mix, tokens),
        _sources(components),
        _processing(),
    ]
    return "\n".join(parts)


def _general(mix: dict[str, Any], tokens: dict[str, Any]) -> str:
    """Section 1: provider, model, size and kind of the data."""
    size = next((name for limit, name in SIZES if mix["tokens"] < limit), "more than 10 trillion tokens")
    language = metrics("clean").get("language")
    trained = metrics("train")
    lines = [
        ("1.1 Provider: name and contact", TO_ADD),
        ("Authorised representative in the Union", TO_ADD),
        ("1.2 Model and version", TO_ADD),
        ("Size and training", f"{trained['parameters']:,} parameters, {trained['tokens']:,} tokens seen"),
        ("Model dependencies", "none: trained from scratch"),
        ("Date of placement on the Union market", TO_ADD),
        ("1.3 Modality", "text"),
        ("Size of the training data", f"{size} ({mix['tokens']:,} by the generator's tokenizer)"),
        ("Kinds of content", ", ".join(_kinds(mix["components"]))),
        ("Latest date of data acquisition", TO_ADD),
        ("Languages", f"{language} (texts found to be in another one were removed)" if language else TO_ADD),
        ("Hash of the tokens", tokens["dataset_hash"]),
    ]
    return f"## 1. General information\n\n| | |\n|---|---|\n{_plain_rows(lines)}\n"


def _kinds(components: dict[str, Any]) -> Iterable[str]:
    for name, one in components.items():
        what = "synthetic educational text and stories" if name == SYNTHETIC else f"natural text ({name})"
        yield f"{what} {one['share']:.0%} of the tokens"


def _sources(components: dict[str, dict[str, Any]]) -> str:
    """Section 2: where the data comes from."""
    public, local = _datasets()
    generator = _read(GENERATOR)
    used = "Trained on directly: " + (", ".join(name for name in components if name != SYNTHETIC) or "none") + "."
    synthetic = _synthetic(components[SYNTHETIC], generator) if SYNTHETIC in components else "None."
    table = "| source | dataset | revision | licence | |\n|---|---|---|---|---|"
    return "\n\n".join(
        [
            "## 2. Data sources",
            "### 2.1 Publicly available datasets",
            f"Quoted in prompts, from which the synthetic text was written. {used}",
            f"{table}\n{source_rows(public)}" if public else "None.",
            "### 2.2 Private datasets obtained from third parties",
            f"Files of this repository or of the machine, not from the hub; whose they are: {TO_ADD}"
            if local
            else "None.",
            *([f"{table}\n{source_rows(local)}"] if local else []),
            "### 2.3 Data crawled and scraped from online sources",
            f"None by this pipeline. How the publishers of the datasets above crawled: {TO_ADD}",
            "### 2.4 User data",
            f"None by this pipeline: {TO_ADD} if a local file has some.",
            "### 2.5 Synthetic data",
            synthetic,
            "### 2.6 Other sources",
            f"{TO_ADD}, or none.\n",
        ]
    )


def _synthetic(one: dict[str, Any], generator: dict[str, Any]) -> str:
    """Section 2.5: what a model wrote."""
    writers = model_rows([(generator["model"], generator["revision"])])
    return (
        f"{one['documents']:,} documents, {one['tokens']:,} tokens of text, written by:\n\n"
        f"| model | revision | terms | |\n|---|---|---|---|\n{writers}\n\n"
        f"Link to the summary of that model's training content: {TO_ADD}"
    )


def _datasets() -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
    """(source, dataset, revision, licence) of all that was read: datasets of the hub, and local files."""
    public, local = [], []
    read = {path.stem: _read(path) for path in sorted((METRICS / "sources").glob("*.json"))}
    natural = _read(METRICS / "natural.json")["components"]
    read |= {f"{name} (natural text)": one for name, one in natural.items() if name != "web"}  # web is a source's
    for name, one in read.items():
        if one.get("dataset") and one["rows_kept"]:
            row = (name, one["dataset"], str(one["revision"]), one.get("licence") or "")
            (local if is_local(one["dataset"]) else public).append(row)
    return public, local


def _processing() -> str:
    """Section 3: rights, illegal content, and what else was done."""
    clean, dedup, decontaminate = (metrics(stage) for stage in ("clean", "dedup", "decontaminate"))
    personal = clean.get("personal_data", {})
    counts = ", ".join(f"{sum(by.values()):,} with {kind}" for kind, by in personal.get("documents", {}).items())
    done = [
        (
            "removed in cleaning",
            ", ".join(f"{reason} {count:,}" for reason, count in clean["removed"].items()) or "none",
        ),
        ("documents with personal data by form", f"{counts or 'none'} ({personal.get('action', 'not searched')})"),
        ("duplicates removed", f"{dedup['rows_removed']:,}"),
        ("documents with benchmark items removed", f"{decontaminate['rows_removed']:,}"),
    ]
    return "\n\n".join(
        [
            "## 3. Data processing",
            "### 3.1 Reservation of rights (text and data mining)",
            f"Signatory of the code of practice: {TO_ADD}. How reservations of rights were respected, by the"
            f" publishers of the datasets in 2.1 and by the provider: {TO_ADD}",
            "### 3.2 Removal of illegal content",
            f"No filter of this pipeline looks for illegal content by name. Topics that reviewers dropped are in"
            f" curation/topics.yaml. Other measures: {TO_ADD}",
            "### 3.3 Other information",
            f"| | |\n|---|---|\n{rows(done)}\n",
        ]
    )


def _plain_rows(lines: list[tuple[str, str]]) -> str:
    """Rows whose mark must stay bold."""
    return "\n".join(f"| {name} | {value if value == TO_ADD else escaped(value)} |" for name, value in lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage that writes it (dvc repro), or dvc pull") from None

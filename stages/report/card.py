"""The dataset card: data/corpus/README.md, as the hub shows it and as `load_dataset` reads it."""

from pathlib import Path
from string import Template
from typing import Any

import polars as pl

from cosmopedia.cards import escaped, head, licence_text, model_rows, rows, size_category, source_rows
from cosmopedia.corpus.components import SYNTHETIC
from cosmopedia.corpus.references import ATTRIBUTIONS
from cosmopedia.licences import Terms, front_matter, terms
from stages.report.composition import BY, composition
from stages.report.facts import DATA, FILTERS, Facts, published_tables
from stages.report.page import DASH, contamination_table, floor_note, number

TEMPLATE = Path(__file__).with_name("card.md")
FOLDER = DATA / "corpus"  # `cosmo publish` puts the repository's name in its place

COLUMNS = {
    "prompt": "what the generation model was asked",
    "text_token_length": "tokens of the text, by the generation model's tokenizer",
    "text": "the document",
    "seed_data": "the extract or title that the prompt quotes",
    "format": "the kind of document",
    "audience": "for whom it is written",
}
DETECTORS = {  # of decontaminate, next to the published rule
    "forms": ", in other forms (the question alone, choices as a list, passages, worked answers)",
    "tolerant": ", and with edits (short n-grams that are in their places)",
}
LINEAGE = {
    "completion_id": "key: prompt id and sample index",
    "prompt_id, template, template_hash": "which template made the prompt",
    "source, seed_id, seed_revision, seed_licence": "where the seed comes from",
    "style, topic, topic_named": "cell, the seed's topic, and whether the prompt names it",
    "model, model_revision, sampling, sampling_seed, engine": "what wrote the text, and how",
    "key, sample_index, finish_reason, prompt_tokens": "the completion store's key and the server's counts",
}


def dataset_card(facts: Facts, profile: str) -> str:
    """card.md, filled in. Values from data are escaped, as YAML in the head and as Markdown below it."""
    licences = {*(licence for _, licence, _ in facts.licences), *facts.quoted["licence"]}
    whole = terms(licences, (model for model, _ in facts.generators))
    slots = {
        "profile": escaped(profile),
        "head": head(_head(facts, profile, whole)),
        "folder": FOLDER,
        "columns": rows(COLUMNS.items()),
        "lineage": rows(LINEAGE.items()),
        **_counts(facts),
        **_lineage(facts, whole),
        **_made(facts),
        **_learned(facts),
        "limits": rows(_limits(facts)),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(slots)


def _sources(facts: Facts) -> list[str]:
    return sorted({cell.source for cell in facts.cells if cell.documents})


def _head(facts: Facts, profile: str, whole: Terms) -> dict[str, Any]:
    configs: list[dict[str, Any]] = [{"config_name": "default", "data_files": "*.parquet", "default": True}]
    configs += [{"config_name": source, "data_files": f"{source}-*.parquet"} for source in _sources(facts)]
    return {
        **front_matter(whole),
        "language": [language] if (language := facts.metrics["clean"].get("language")) else None,
        "pretty_name": f"Cosmopedia ({profile})",
        "task_categories": ["text-generation"],
        "tags": ["synthetic"],
        "size_categories": [size_category(facts.documents)],
        "configs": configs,
    }


def _counts(facts: Facts) -> dict[str, Any]:
    """What there is, and how it divides."""
    parts = composition(published_tables())
    by = {
        f"by_{column}": rows(
            [name, number(documents), number(tokens)] for name, documents, tokens in parts.table(column)
        )
        for column in BY
    }
    sources = _sources(facts)
    return by | {
        "documents": number(facts.documents),
        "tokens": number(facts.tokens),
        "sources": len(sources),
        "example": escaped(next(iter(sources), "default")),
        "cells": rows([c.source, c.style, number(c.documents), number(c.tokens)] for c in facts.cells),
        "settings": escaped("; ".join(parts.settings())),
    }


def _lineage(facts: Facts, whole: Terms) -> dict[str, Any]:
    """Where it comes from, and what that asks of whoever passes it on."""
    datasets = {name: str(metrics.get("dataset") or DASH) for name, metrics in facts.sources.items()}
    generators = ", ".join(f"{escaped(model)} (revision {escaped(at)})" for model, at in facts.generators)
    seeds = [(source, datasets.get(source, DASH), at, licence) for source, licence, at in facts.licences]
    return {
        "generators": generators or DASH,
        "language": facts.metrics["clean"].get("language") or "not checked",
        "licence": licence_text(whole),
        "licences": source_rows(seeds),
        "passages": _passages(facts),
        "models": model_rows(facts.generators),
    }


def _passages(facts: Facts) -> str:
    """The articles that prompts quote, by corpus and licence; nothing where none quotes any."""
    if not facts.quoted.height:
        return ""
    dataset = str(facts.metrics["knowledge"].get("dataset") or DASH)
    by = (
        facts.quoted.group_by("revision", "licence")
        .agg(pl.len(), pl.col("documents").sum())
        .sort("revision", "licence")
    )
    lines = (
        [dataset, revision, licence, number(articles), number(documents)]
        for revision, licence, articles, documents in by.iter_rows()
    )
    return (
        f"\nPrompts also quote passages of articles; `{ATTRIBUTIONS}` names every one, with its licence:\n\n"
        "| articles of | revision | licence | articles | times quoted |\n|---|---|---|---:|---:|\n"
        f"{rows(lines)}\n"
    )


def _made(facts: Facts) -> dict[str, Any]:
    """How it was made, and what was searched for in it."""
    m = facts.metrics
    return {
        "completions": number(m["generate"].get("completed")),
        "prompts": number(m["prompts"].get("rows_kept")),
        "removed": number(sum(m[stage]["rows_removed"] for stage in FILTERS)),
        "reasons": _removals(facts),
        "dataset_hash": m["tokenize_corpus"].get("dataset_hash", DASH),
        "benchmarks": len(m["benchmarks"].get("tasks", {})) or "the",
        "items": number(m["decontaminate"].get("benchmark_items", {}).get("checked")),
        "detectors": "".join(
            words for name, words in DETECTORS.items() if name in m["decontaminate"].get("detectors", {})
        ),
        "contaminated": number(m["decontaminate"]["rows_removed"]),
        "contamination": _contamination(facts),
    }


def _learned(facts: Facts) -> dict[str, Any]:
    """What a model trained on it scores."""
    m, (panel, mean) = facts.metrics, next(iter(facts.metrics["evaluate"]["panels"].items()))
    return {
        "parameters": number(m["train"]["parameters"]),
        "trained_tokens": number(m["train"]["tokens"]),
        "epochs": number(m["train"]["epochs"], 2),
        "mix": _mix(m["mix"]["components"]),
        "perplexity": number(m["train"].get("validation_perplexity")),
        "acc_norm": number(mean["acc_norm"], 3),
        "panel": panel,
        "tasks": len(mean["tasks"]),
        "floor": floor_note(mean),
        "heldout": number(m["evaluate"]["heldout"]["together"]["bpb"]),
    }


def _limits(facts: Facts) -> list[tuple[str, str]]:
    """What the stages measured that a user of the texts should know."""
    m = facts.metrics
    completed = m["generate"].get("completed") or 1
    removed = m["clean"]["removed"]
    reached = m["generate"].get("finish_reasons", {}).get("length", 0)
    lines = [
        ("completions that reached the limit of tokens (cut to the last full sentence)", f"{reached / completed:.1%}"),
        ("completions that repeated themselves (removed)", f"{removed.get('repetition', 0) / completed:.1%}"),
        ("completions that refused (removed)", f"{removed.get('refusal', 0) / completed:.1%}"),
        ("near and exact duplicates (removed)", f"{m['dedup']['rows_removed'] / max(1, m['dedup']['rows_in']):.1%}"),
    ]
    personal = m["clean"].get("personal_data")
    if personal is not None:
        found = [f"{number(sum(by.values()))} with {kind}" for kind, by in personal["documents"].items()]
        lines.append((f"documents with personal data by form ({personal['action']})", ", ".join(found) or "none"))
    return lines


def _mix(components: dict[str, dict]) -> str:
    """What else than these documents the model was trained on; nothing when it was not."""
    if [*components] == [SYNTHETIC]:
        return ""
    shares = ", ".join(f"{row['share']:.0%} {name}" for name, row in components.items())
    return f" of {shares} text"


def _contamination(facts: Facts) -> str:
    names, counts = contamination_table(facts)
    return f"{rows([names])}\n|{'---|' * len(names)}\n{rows(counts)}" if counts else "None held an item."


def _removals(facts: Facts) -> str:
    counts = [
        f"{reason.replace('_', ' ')} {number(count)}"
        for stage in FILTERS
        for reason, count in facts.metrics[stage]["removed"].items()
        if count
    ]
    return ", ".join(counts) or "none"

"""The dataset card: data/corpus/README.md, as the hub shows it and as `load_dataset` reads it."""

import json
from pathlib import Path
from string import Template

from cosmopedia.corpus.components import SYNTHETIC
from stages.report.facts import FILTERS, Facts
from stages.report.page import DASH, contamination_table, floor_note, number

TEMPLATE = Path(__file__).with_name("card.md")

SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
)
COLUMNS = {
    "prompt": "what the generation model was asked",
    "text_token_length": "tokens of the text, by the generation model's tokenizer",
    "text": "the document",
    "seed_data": "the extract or title that the prompt quotes",
    "format": "the kind of document",
    "audience": "for whom it is written",
    "completion_id": "key: prompt id and sample index",
    "prompt_id, template, template_hash": "which template made the prompt",
    "source, seed_id, seed_revision, seed_licence": "where the seed comes from",
    "style, topic, topic_named": "cell, the seed's topic, and whether the prompt names it",
    "model, model_revision, sampling, sampling_seed, engine": "what wrote the text, and how",
    "key, sample_index, finish_reason, prompt_tokens": "the completion store's key and the server's counts",
}


def dataset_card(facts: Facts, profile: str) -> str:
    """card.md, filled in. Values from data are written as JSON strings, which are YAML strings too."""
    m, (panel, mean) = facts.metrics, next(iter(facts.metrics["evaluate"]["panels"].items()))
    sources = sorted({cell.source for cell in facts.cells if cell.documents})
    generators = ", ".join(f"`{model}` (revision `{revision}`)" for model, revision in facts.generators)
    slots = {
        "profile": profile,
        "size": next((name for limit, name in SIZES if facts.documents < limit), "n>100M"),
        "configs": "\n".join(
            f"- config_name: {json.dumps(source)}\n  data_files: {json.dumps(source + '-*.parquet')}"
            for source in sources
        ),
        "documents": number(facts.documents),
        "tokens": number(facts.tokens),
        "generators": generators or DASH,
        "sources": len(sources),
        "columns": _rows([f"`{name}`" if "," not in name else name, what] for name, what in COLUMNS.items()),
        "cells": _rows([c.source, c.style, number(c.documents), number(c.tokens)] for c in facts.cells),
        "formats": _rows([name, number(count)] for name, count in sorted(facts.by_format.items())),
        "audiences": _rows([name, number(count)] for name, count in sorted(facts.by_audience.items())),
        "licences": _rows([source, licence, f"`{revision}`"] for source, licence, revision in facts.licences),
        "completions": number(m["generate"].get("completed")),
        "prompts": number(m["prompts"].get("rows_kept")),
        "removed": number(sum(m[stage]["rows_removed"] for stage in FILTERS)),
        "reasons": _removals(facts),
        "benchmarks": len(m["benchmarks"].get("tasks", {})) or "the",
        "items": number(m["decontaminate"].get("benchmark_items", {}).get("checked")),
        "contaminated": number(m["decontaminate"]["rows_removed"]),
        "contamination": _contamination(facts),
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
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(slots)


def _rows(rows) -> str:
    """Table lines; a bar or a line break inside a cell would end it."""
    return "\n".join(
        "| " + " | ".join(str(v).replace("|", "\\|").replace("\n", " ") for v in row) + " |" for row in rows
    )


def _mix(components: dict[str, dict]) -> str:
    """What else than these documents the model was trained on; nothing when it was not."""
    if [*components] == [SYNTHETIC]:
        return ""
    shares = ", ".join(f"{row['share']:.0%} {name}" for name, row in components.items())
    return f" of {shares} text"


def _contamination(facts: Facts) -> str:
    head, rows = contamination_table(facts)
    return f"{_rows([head])}\n|{'---|' * len(head)}\n{_rows(rows)}" if rows else "None held an item."


def _removals(facts: Facts) -> str:
    counts = [
        f"{reason.replace('_', ' ')} {number(count)}"
        for stage in FILTERS
        for reason, count in facts.metrics[stage]["removed"].items()
        if count
    ]
    return ", ".join(counts) or "none"

"""The dataset card: README.md as the hub shows it."""

import json

from stages.report.facts import Facts
from stages.report.page import contamination_table, number, share

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
    """Front matter and text. Values from data are written as JSON strings, which are YAML strings too."""
    m = facts.metrics
    size = next((name for limit, name in SIZES if facts.documents < limit), "n>100M")
    sources = sorted({cell.source for cell in facts.cells})
    configs = "\n".join(
        f"- config_name: {json.dumps(source)}\n  data_files: {json.dumps(source + '-*.parquet')}" for source in sources
    )
    generators = ", ".join(f"`{model}` (revision `{revision}`)" for model, revision in facts.generators) or "–"
    removed = sum(m[stage]["rows_removed"] for stage in ("clean", "dedup", "decontaminate"))
    mean = m["evaluate"]["average"]
    return f"""---
license: apache-2.0
language:
- en
pretty_name: Cosmopedia ({profile})
task_categories:
- text-generation
tags:
- synthetic
size_categories:
- {size}
configs:
{configs}
---

# Cosmopedia ({profile})

Synthetic textbooks, blog posts, WikiHow articles, stories and forum posts: {number(facts.documents)} documents,
{number(facts.tokens)} tokens, written by {generators} from prompts that quote seeds from {len(sources)} sources.
`dvc repro` makes it from the seeds; nothing in it was written by hand.

## Columns

| column | what |
|---|---|
{_rows([f"`{name}`" if "," not in name else name, what] for name, what in COLUMNS.items())}

## Counts

| source | style | documents | tokens |
|---|---|---:|---:|
{_rows([c.source, c.style, number(c.documents), number(c.tokens)] for c in facts.cells)}

| format | documents |
|---|---:|
{_rows([name, number(count)] for name, count in sorted(facts.by_format.items()))}

| audience | documents |
|---|---:|
{_rows([name, number(count)] for name, count in sorted(facts.by_audience.items()))}

## Sources and licences

The seeds are quoted in `prompt` and `seed_data`, under their own licences:

| source | licence of the seeds | revision |
|---|---|---|
{_rows([source, licence, f"`{revision}`"] for source, licence, revision in facts.licences)}

## How it was made

{number(m["generate"].get("completed"))} completions of {number(m["prompts"].get("rows_kept"))} prompts;
{number(removed)} were removed: {_removals(facts)}. Openings that models put before a text
("Sure, here is…") were cut off.

## Decontamination

Every document was searched for the items of {len(m["benchmarks"].get("tasks", {})) or "the"} benchmarks
({number(m["decontaminate"].get("benchmark_items", {}).get("checked"))} items) by shared 10-grams and the length of the
matched text; {number(m["decontaminate"]["rows_removed"])} documents were removed. They and their evidence are kept in
`data/decontaminate/removed/removed.parquet`. Documents by benchmark and source, distinct items in brackets:

{_contamination(facts)}

## What a model learns from it

A Llama of {number(m["train"]["parameters"])} parameters, trained on {number(m["train"]["tokens"])} tokens
({number(m["train"]["epochs"], 2)} epochs), reaches a validation perplexity of
{number(m["train"].get("validation_perplexity"))} and an average acc_norm of {share(mean["acc_norm"])} on
{len(m["evaluate"]["tasks"])} benchmarks (guessing: {share(mean["chance"])}).

## Limits

A model wrote these texts. They hold errors, invented facts and the model's habits; do not learn medicine or law from
them.
"""


def _rows(rows) -> str:
    """Table lines; a bar or a line break inside a cell would end it."""
    return "\n".join(
        "| " + " | ".join(str(v).replace("|", "\\|").replace("\n", " ") for v in row) + " |" for row in rows
    )


def _contamination(facts: Facts) -> str:
    head, rows = contamination_table(facts)
    return f"{_rows([head])}\n|{'---|' * len(head)}\n{_rows(rows)}" if rows else "None held an item."


def _removals(facts: Facts) -> str:
    found = [
        f"{reason.replace('_', ' ')} {number(count)}"
        for stage in ("clean", "dedup", "decontaminate")
        for reason, count in facts.metrics[stage]["removed"].items()
        if count
    ]
    return ", ".join(found) or "none"

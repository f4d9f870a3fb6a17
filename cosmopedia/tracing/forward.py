"""Where a document came from, and where it went: its whole history as one dictionary.

A document's row carries most of it (template, source row, revision, licence, topic, model, key), so only what later
stages decided is looked up: by id in tables that are sorted by it, and by scanning the id column of the token shards'
tables, which are in the order of a shuffle.
"""

from collections.abc import Callable
from typing import Any

import polars as pl

from cosmopedia.execution.versions import read_json
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tracing.changes import evidence_of, word_diff
from cosmopedia.tracing.corpus import (
    DOCUMENTS,
    PATH,
    REMOVING,
    Corpus,
    collect,
    rows_with,
    scan,
    with_id,
)  # fmt: skip
from cosmopedia.tracing.templates import template_origin

MODEL = ("model", "model_revision", "engine", "sampling", "sampling_seed", "finish_reason", "prompt_tokens")
LIKE = 20  # duplicates that are listed
COPIES = 10_000  # of one document, at most
SPLITS = ("train", "validation")

Row = dict[str, Any]
Hasher = Callable[[str, str], str | None]


def trace(corpus: Corpus, what: str, template_hash: Hasher) -> list[Row]:
    """The histories of a completion, or of all completions of a prompt; [] when no table here has that id."""
    found: dict[str, dict[str, Row]] = {}  # completion id -> stage -> row
    cell = None
    for stage in DOCUMENTS:
        paths = corpus.cells(f"data/{stage}", cell)
        for row in rows_with(paths, with_id("completion_id", what)):
            found.setdefault(row["completion_id"], {})[stage] = row
            cell = cell or cell_of(row[PATH])
    histories = [history(corpus, stages, template_hash) for _, stages in sorted(found.items())]
    return histories or _without_document(corpus, what, template_hash)


def _without_document(corpus: Corpus, what: str, template_hash: Hasher) -> list[Row]:
    """A prompt that has no completion here, one whose completion failed, or one that was removed."""
    prompt_id = what.rpartition("-")[0] if "-" in what else what
    failed = rows_with(_named(corpus, "data/generate", "failed/failed.parquet"), with_id("completion_id", what))
    prompts = rows_with(corpus.cells("data/prompts"), pl.col("prompt_id") == prompt_id)
    if prompts:
        state = "no completion here"
        lost = None
        if failed:
            state = f"generate has no completion: {failed[0]['reason']}"
            lost = {"stage": "generate", "reason": failed[0]["reason"], "evidence": {"detail": failed[0]["detail"]}}
        return [_origin(corpus, prompts[0], template_hash) | {"id": what, "state": state, "removed": lost}]
    gone = rows_with(_named(corpus, "data/prompts", "removed/removed.parquet"), pl.col("row_id") == prompt_id)
    lost = [{"stage": "prompts", "reason": row["reason"], "evidence": {"detail": row["detail"]}} for row in gone]
    return [{"id": what, "state": f"removed by prompts: {one['reason']}", "removed": one} for one in lost]


def history(corpus: Corpus, stages: dict[str, Row], template_hash: Hasher) -> Row:
    """The history of one completion, from its rows by stage."""
    first, last = next(iter(stages.values())), next(reversed(stages.values()))
    completion_id = first["completion_id"]
    removed = _removed(corpus, completion_id, stages)
    final = corpus.final()
    copies = _copies(corpus, stages[final]) if final in stages and not removed else None
    tokens = _tokens(corpus, completion_id) if final in stages and not removed and copies != 0 else []
    return {
        "id": completion_id,
        "state": _state(corpus, stages, removed, copies),
        "removed": removed,
        **_origin(corpus, first, template_hash),
        "written_by": {name: first[name] for name in MODEL} | {"tokens": first["text_token_length"]},
        "store_key": first["key"],
        "cleaning": _cleaning(stages),
        "duplicates": _duplicates(corpus, completion_id, removed),
        "contamination": _contamination(corpus, completion_id, removed),
        "copies": copies,
        "tokens": tokens,
        "models": models(corpus) if any(place["split"] == "train" for place in tokens) else [],
        "text": removed["text"] if removed else last["text"],
    }


def _copies(corpus: Corpus, row: Row) -> int | None:
    """How often the mix takes a document; None without a mix."""
    paths = corpus.cells("data/mix", cell_of(row[PATH]))
    found = rows_with(paths, pl.col("completion_id") == row["completion_id"])
    return sum(one["copies"] for one in found) if corpus.cells("data/mix") else None


def _state(corpus: Corpus, stages: dict[str, Row], removed: Row | None, copies: int | None) -> str:
    """Where a document is, in a few words; what is not here is not guessed."""
    if removed:
        return f"removed by {removed['stage']}: {removed['reason']}"
    final, last = corpus.final() or DOCUMENTS[0], next(reversed(stages))
    if copies == 0:
        return f"in data/{final}, but the mix leaves it out"
    if final in stages:
        absent = corpus.absent_after(final)
        return f"in data/{final}; what {' and '.join(absent)} did is not here" if absent else "in the corpus"
    unknown = [stage for stage in REMOVING if f"data/{stage}" in corpus.missing]
    reason = f"what {' and '.join(unknown)} removed is not here" if unknown else "in no table of removed documents"
    return f"in data/{last}, but not in data/{final}; {reason}"


def _origin(corpus: Corpus, row: Row, template_hash: Hasher) -> Row:
    """What a prompt's or a document's row says of where it came from, with what is looked up for that."""
    kept = ("source", "style", "format", "audience", "prompt_id", "prompt")
    template = {"path": row["template"], "hash": row["template_hash"]}
    if row["template"]:
        template |= template_origin(corpus.version, row["template"], row["template_hash"], template_hash)
    return {
        **{name: row[name] for name in kept},
        "template": template,
        "source_row": source_row(corpus, row),
        "topic": topic_of(corpus, row),
        "passages": passages_of(corpus, row),
    }


def source_row(corpus: Corpus, row: Row) -> Row:
    """The source row: dataset, revision, licence; with title, address and text where the source's table is here."""
    known = {"row_id": row["seed_id"], "extract": row["seed_data"]}
    known |= {"revision": row["seed_revision"], "licence": row["seed_licence"]}
    known["dataset"] = dataset_of(corpus, row["source"])
    table = f"data/sources/{row['source']}.parquet"
    own = row["seed_id"] and (row["style"] != "natural" or corpus.version.has(table))  # other datasets have no table
    path = corpus.file(table) if own else None
    rows = rows_with({"": path}, pl.col("row_id") == row["seed_id"]) if path else []
    return known | ({name: rows[0][name] for name in ("title", "url", "text")} if rows else {})


def passages_of(corpus: Corpus, row: Row) -> list[Row]:
    """The passages that a prompt quotes, in its order, as far as data/prompts and data/knowledge are here."""
    cell = f"references/{row['source']}-{row['style']}."
    named = {name: path for name, path in corpus.present("data/prompts").items() if name.startswith(cell)}
    quoted = [one["passages"] for one in rows_with(named, pl.col("prompt_id") == row["prompt_id"])]
    if not quoted:
        return []
    known = rows_with(_named(corpus, "data/knowledge", "passages.parquet"), pl.col("passage_id").is_in(quoted[0]))
    by_id = {one["passage_id"]: one for one in known}
    names = ("title", "article", "revision", "licence", "text")
    return [{"passage_id": name} | {n: by_id[name][n] for n in names if name in by_id} for name in quoted[0]]


def dataset_of(corpus: Corpus, source: str) -> str | None:
    """The dataset of a source in the params that dvc.lock has of its stage, thus of the run."""
    params = (corpus.version.lock.get(f"sources@{source}") or {}).get("params") or {}
    for content in params.values():
        settings = content.get(f"sources.{source}") if isinstance(content, dict) else None
        if isinstance(settings, dict) and settings.get("dataset"):
            return str(settings["dataset"])
    return None


def topic_of(corpus: Corpus, row: Row) -> Row | None:
    """The topic of a clustered source's row, and who decided to keep it; None for other sources."""
    if row["topic"] is None:
        return None
    topic: Row = {"topic": row["topic"], "named_in_prompt": row["topic_named"]}
    assigned = rows_with(_named(corpus, "data/topics", "web.parquet"), pl.col("row_id") == row["seed_id"])
    if assigned:
        cluster = assigned[0]["cluster"]
        decided = rows_with(_named(corpus, "data/topics", "topics.parquet"), pl.col("cluster") == cluster)
        for one in decided:
            names = ("decision", "reason", "decided_by", "label", "educational_score", "mixed")
            topic |= {"cluster": cluster, **{name: one[name] for name in names}}
    return topic


def _named(corpus: Corpus, out: str, name: str) -> dict[str, Any]:
    files = corpus.files(out)
    return {name: files[name]} if name in files else {}


def _removed(corpus: Corpus, completion_id: str, stages: dict[str, Row]) -> Row | None:
    """The stage that removed a document, with its evidence."""
    for stage in REMOVING:
        if stage in stages:
            continue
        named = _named(corpus, f"data/{stage}", "removed/removed.parquet")
        for row in rows_with(named, pl.col("completion_id") == completion_id):
            evidence = evidence_of(row["evidence"])
            return {"stage": stage, "reason": row["reason"], "evidence": evidence, "text": row["text"]}
    return None


def _cleaning(stages: dict[str, Row]) -> Row | None:
    """What clean changed: pieces of (=, -, +) with their words; None where one of the two texts is not here."""
    if "generate" not in stages or "clean" not in stages:
        return None
    raw, clean = stages["generate"]["text"], stages["clean"]["text"]
    return {"changed": raw != clean, "diff": word_diff(raw, clean) if raw != clean else []}


def _duplicates(corpus: Corpus, completion_id: str, removed: Row | None) -> Row | None:
    """The document that stayed in place of this one, or those that went because this one stays."""
    if removed and removed["stage"] == "dedup" and isinstance(removed["evidence"], dict):
        return {"kept": removed["evidence"].get("kept"), "removed": []}
    named = _named(corpus, "data/dedup", "removed/removed.parquet")
    if removed or not named:
        return None
    columns = ("completion_id", "reason", "evidence")
    mine = pl.col("evidence").str.contains(completion_id, literal=True)
    gone = collect(scan(named.values()).filter(mine).select(columns).head(LIKE))
    others = [{"id": i, "reason": reason, "evidence": evidence_of(e)} for i, reason, e in gone.iter_rows()]
    return {"kept": completion_id, "removed": others}


def _contamination(corpus: Corpus, completion_id: str, removed: Row | None) -> Row | None:
    """The items that a document was removed for, and the paraphrases that were judged; None where it never came."""
    if removed and removed["stage"] != "decontaminate":
        return None
    items = removed["evidence"] if removed else None
    named = _named(corpus, "data/paraphrases", "pairs.parquet")
    pairs = rows_with(named, (pl.col("pair_id") >= completion_id) & (pl.col("completion_id") == completion_id))
    shown = ("task", "item_id", "cosine", "verdict", "passage")
    return {"removed_for": items, "paraphrases": [{name: pair[name] for name in shown} for pair in pairs]}


def _tokens(corpus: Corpus, completion_id: str) -> list[Row]:
    """The shards that have a document, its first token there and its number of tokens; one place per copy."""
    places = []
    for split in SPLITS:
        named = _named(corpus, "data/tokenize_corpus", f"{split}/documents.parquet")
        # the n-th copy of a mix has `#n` behind its id; one test per id, for this table is in no order and read whole
        rows = rows_with(named, pl.col("completion_id").str.starts_with(completion_id), limit=COPIES)
        for row in (row for row in rows if row["completion_id"].partition("#")[0] == completion_id):
            shard = f"data/tokenize_corpus/{split}/{row['shard']:03d}_{split}.ds"
            places.append({"split": split, "shard": shard, "start": row["start"], "tokens": row["tokens"]})
        if places:  # all copies are on one side
            break
    return places


def models(corpus: Corpus) -> list[Row]:
    """The models here whose training read this corpus: the hash of its token shards is in their record."""
    path = corpus.files("data/tokenize_corpus").get("corpus.json")
    if path is None:
        return []
    digest = read_json(path).get("dataset_hash")
    found: dict[str, Row] = {}
    for out in ("models/train", "models/export"):
        for name, file in corpus.files(out).items():
            record = read_json(file) if name.rpartition("/")[2] == "training.json" else {}
            if record and record.get("dataset_hash") == digest:
                model = name.rpartition("/")[0] or out
                shown = {key: record.get(key) for key in ("steps", "tokens", "epochs")}
                found.setdefault(model, {"model": model, "folders": [], **shown})["folders"].append(f"{out}/{model}")
    return list(found.values())

"""A document's history in words: titled groups of (name, value)."""

from collections.abc import Iterable
from typing import Any

from cosmopedia.tracing.changes import Piece

CUT = 400  # characters of a text, unless all is wanted
CONTEXT = 40  # characters of an unchanged part that are shown next to a change

Row = dict[str, Any]
Group = tuple[str, list[tuple[str, Any]]]


def groups(history: Row, full: bool) -> list[Group]:
    """The parts of a history, in the order of the pipeline; parts that are not known are left out."""
    parts: list[Group] = [(history["id"], [("state", history["state"]), *_removal(history.get("removed"), full)])]
    if "prompt" not in history:
        return parts
    parts[0][1][1:1] = [("cell", f"{history['source']} x {history['style']}, for {history['audience']}")]
    if history["template"]["path"]:
        parts.append(("template", _template(history["template"])))
    parts += [("prompt", [("id", history["prompt_id"]), ("text", cut(history["prompt"], full))])] * bool(
        history["prompt"]
    )
    if history["source_row"]["row_id"]:
        parts.append(("source row", _source_row(history["source_row"], full)))
    if history["passages"]:
        parts.append(("passages quoted", [_passage(one, full) for one in history["passages"]]))
    if history["topic"]:
        parts.append(("topic", _topic(history["topic"])))
    if "written_by" in history:
        parts += _after_writing(history, full)
    return parts


def _after_writing(history: Row, full: bool) -> list[Group]:
    written = history["written_by"]
    model = [
        ("model", f"{written['model']} at {written['model_revision']}"),
        ("sampling", f"{written['sampling']}, seed {written['sampling_seed']}"),
        ("engine", written["engine"]),
        ("ended by", f"{written['finish_reason']}, {written['tokens']} tokens after {written['prompt_tokens']}"),
        ("store key", history["store_key"]),
    ]
    after: list[tuple[str, Any]] = []
    if history["cleaning"]:
        changed = history["cleaning"]["changed"]
        after.append(("clean", marked(history["cleaning"]["diff"], full) if changed else "changed nothing"))
    after += [("dedup", _dedup(history)), ("decontaminate", _decontamination(history))]
    if history["copies"] is not None:
        after.append(("mix", f"takes it {history['copies']} times"))
    for place in history["tokens"]:
        after.append(("tokens", f"{place['shard']}, {place['tokens']} from token {place['start']:,} on"))
    if any(place["split"] == "validation" for place in history["tokens"]):
        after.append(("", "a validation document: no model is trained on it"))
    after += [("trained on it", _model(model)) for model in history["models"]]
    text = [("", cut(history["text"], full))]
    if not written["model"]:
        model = [("", "no model: natural text")]
    if history["removed"]:
        after.append(("removed by", f"{history['removed']['stage']}: {history['removed']['reason']}"))
    return [("written by", model), ("what became of it", [pair for pair in after if pair[1]]), ("text", text)]


def _removal(removed: Row | None, full: bool) -> list[tuple[str, Any]]:
    return [("evidence", cut(in_words(removed["evidence"]), full))] if removed else []


def in_words(evidence: Any) -> str:
    """JSON as `name value, name value`."""
    if isinstance(evidence, dict):
        return ", ".join(f"{name} {in_words(value)}" for name, value in evidence.items())
    if isinstance(evidence, list):
        return "; ".join(map(in_words, evidence))
    return str(evidence)


def _template(template: Row) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("file", template["path"]), ("hash", template["hash"])]
    if template["state"] == "committed":
        rows.append(("revision", f"{template['commit'][:10]} of {template['date']}: {template['subject']}"))
    elif template["state"] == "not committed":
        rows.append(("revision", "not committed: the file as it is here"))
    else:
        rows.append(("revision", "no commit has the text that was sent"))
    if template["edited_since"]:
        rows.append(("", "the template has another text now"))
    return rows


def _source_row(row: Row, full: bool) -> list[tuple[str, Any]]:
    names = ("row_id", "dataset", "revision", "licence", "title", "url")
    rows = [(name.replace("row_id", "id"), row[name]) for name in names if row.get(name)]
    return [*rows, ("extract", cut(row["extract"], full))]


def _passage(passage: Row, full: bool) -> tuple[str, str]:
    about = [passage[name] for name in ("title", "article", "licence", "revision") if passage.get(name)]
    text = f": {cut(passage['text'], full)}" if "text" in passage else "data/knowledge is not here"
    return passage["passage_id"], f"{', '.join(about)}{text}"


def _topic(topic: Row) -> list[tuple[str, Any]]:
    named = "named in the prompt" if topic["named_in_prompt"] else "not named in the prompt"
    rows: list[tuple[str, Any]] = [("topic", f"{topic['topic']} ({named})")]
    if "cluster" in topic:
        rows += [
            ("decision", f"{topic['decision']}, by {topic['decided_by']}: {topic['reason']}"),
            ("cluster", f"{topic['cluster']}, labelled {topic['label']!r}, score {topic['educational_score']}"),
        ]
    return rows


def _dedup(history: Row) -> str | None:
    duplicates = history["duplicates"]
    if duplicates is None:
        return None
    if duplicates["kept"] != history["id"]:
        return f"a duplicate of {duplicates['kept']}" if duplicates["kept"] else None
    if not duplicates["removed"]:
        return "kept; nothing was removed as its duplicate"
    others = ", ".join(f"{other['id']} ({in_words(other['evidence'])})" for other in duplicates["removed"])
    return f"kept; its duplicates were removed: {others}"


def _decontamination(history: Row) -> str | None:
    found = history["contamination"]
    if found is None or found["removed_for"]:
        return None
    pairs = [f"{pair['item_id']} (cosine {pair['cosine']}, {pair['verdict']})" for pair in found["paraphrases"]]
    return f"kept; judged as paraphrases: {', '.join(pairs)}" if pairs else "kept; no benchmark item in it"


def _model(model: Row) -> str:
    epochs = model["epochs"]
    seen = "" if epochs is None else f", {epochs:.3g} epochs"
    less = "; below one epoch it may not have been read" if epochs is not None and epochs < 1 else ""
    return f"{' and '.join(model['folders'])} ({model['steps']} steps{seen}{less})"


def cut(text: str, full: bool) -> str:
    """A text, or its beginning."""
    return (
        text if full or len(text) <= CUT else f"{text[:CUT].rstrip()} … ({len(text):,} characters; --full shows all)"
    )


def marked(pieces: Iterable[Piece], full: bool) -> list[Piece]:
    """Pieces as they are shown: of what did not change only the parts next to a change."""
    pieces = list(pieces)
    shown = []
    for number, (kind, text) in enumerate(pieces):
        if kind == "=" and not full and len(text) > 2 * CONTEXT:
            before = text[:CONTEXT] if number else ""
            after = text[-CONTEXT:] if number + 1 < len(pieces) else ""
            text = f"{before} … {after}"
        shown.append((kind, text))
    return shown

"""The HTML report: one file that needs nothing else. The template escapes every text from a model or the web."""

import base64
import re
from pathlib import Path
from typing import Any

from cosmopedia.corpus.components import is_natural
from cosmopedia.pages import page_template
from stages.report.facts import ASSIGNMENTS, FILTERS, Facts

HERE, DASH = Path(__file__).parent, "–"
RULES = ("plain", "window")  # decontamination's two ratios
TOPICS = {"clusters": Path("metrics/plots/topics.png"), "topic_scores": Path("metrics/plots/topic_scores.png")}
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
SVG_SIZE, PIXELS = re.compile(r' (?:width|height)="([\d.]+)pt"'), 4 / 3  # pixels of a point


def render(facts: Facts, profile: str, figures: dict[str, Path], excerpt: int) -> str:
    """The page."""
    images = {name: image(path) for name, path in figures.items()}
    images |= {name: image(path) for name, path in TOPICS.items() if path.is_file()}
    contamination_head, contamination = contamination_table(facts)
    return page_template(HERE, "page.html.j2").render(
        profile=profile,
        images={"clusters": None, "topic_scores": None, "removals": None} | images,
        has_map=ASSIGNMENTS.is_file(),
        sections=SECTIONS,
        excerpt=excerpt,
        key=key_figures(facts),
        funnel=funnel(facts),
        accounts=accounts(facts),
        by_cell=by_cell(facts),
        sources=sources(facts),
        topics=topic_rows(facts),
        topics_note=topics_note(facts),
        prompts=[
            [r["source"], r["style"], r["format"], r["audience"], number(int(r["prompts"]))] for r in facts.prompts
        ],
        pilot=pilot(facts),
        examples=[
            (kind.replace("_", " "), [shown(row, excerpt) for row in rows]) for kind, rows in facts.examples.items()
        ],
        removed=[
            (
                stage,
                reason.replace("_", " "),
                number(facts.metrics[stage]["removed"].get(reason)),
                [shown(r, excerpt) for r in rows],
            )
            for (stage, reason), rows in facts.removed.items()
        ],
        contamination_note=contamination_note(facts),
        contamination_head=contamination_head,
        contamination=contamination,
        mix=mix_rows(facts),
        model=model_rows(facts),
        scores_head=[*SCORE_HEAD, "informative"],
        scores=score_rows(facts),
        heldout=heldout_rows(facts),
        cut_note=cut_note(facts),
        baselines_head=baselines_head(facts),
        baselines=baseline_rows(facts),
        baselines_note=baselines_note(facts),
        published=published_rows(facts),
        run=run_rows(facts),
    )


PILOT_SHARES = (  # of the pilot's measures, as the page's table has them
    "opening", "openings", "closings", "refused", "short", "repeated", "copied", "unfinished", "truncated",
)  # fmt: skip
SECTIONS = [
    ("documents", "Source rows to tokens"),
    ("sources", "Source rows and topics"),
    ("prompts", "Prompts"),
    ("pilot", "Pilot"),
    ("corpus", "Corpus"),
    ("removed", "Removed"),
    ("contamination", "Contamination"),
    ("model", "Model"),
    ("scores", "Scores"),
    ("run", "Run"),
]


def image(path: Path) -> dict[str, Any]:
    """An image as a data: address, and its size in pixels, without which the page moves while images are decoded."""
    content = path.read_bytes()
    if path.suffix == ".svg":
        size = [float(side) * PIXELS for side in SVG_SIZE.findall(content[:2000].decode("latin-1"))[:2]]
    else:
        size = [int.from_bytes(content[place : place + 4], "big") for place in (16, 20)]
    address = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(content).decode()}"
    return {"src": address, "width": round(size[0]), "height": round(size[1])}


def number(value: Any, digits: int = 4) -> str:
    """A number for people; a dash for a missing one."""
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return DASH if value is None else f"{100 * value:.1f}%"


def shown(row: dict[str, Any], excerpt: int) -> dict[str, Any]:
    """A document as the page shows it."""
    text = row["text"] if len(row["text"]) <= excerpt else row["text"][:excerpt].rstrip() + " …"
    return {
        "id": row["completion_id"],
        "source": row["source"],
        "style": row["style"].replace("_", " "),
        "audience": row.get("audience", "").replace("_", " "),
        "tokens": number(row.get("text_token_length")),
        "prompt": row.get("prompt", ""),
        "evidence": [(name, value[:excerpt]) for name, value in row.get("evidence", [])],
        "text": text,
    }


def key_figures(facts: Facts) -> list[tuple[str, str, str]]:
    """The figures at the top: name, value, note."""
    m, generated = facts.metrics, facts.metrics["generate"].get("completed")
    kept = facts.documents / generated if generated else None
    panel, mean = next(iter(m["evaluate"]["panels"].items()))
    heldout = m["evaluate"]["heldout"]["together"]
    return [
        ("prompts", number(m["prompts"].get("rows_kept")), f"{len(facts.cells)} cells"),
        ("completions", number(generated), f"{number(m['generate'].get('failed'))} failed"),
        ("documents", number(facts.documents), f"{share(kept)} of the completions"),
        ("tokens", number(facts.tokens), f"{number(m['tokenize_corpus'].get('documents'))} documents tokenised"),
        ("model", f"{m['train']['parameters'] / 1e6:,.1f}M", "parameters"),
        ("perplexity", number(m["train"].get("validation_perplexity")), "on held-out documents"),
        ("held-out", number(heldout["bpb"], 4), "bits per byte"),
        (
            f"acc_norm, {panel}",
            number(mean["acc_norm"], 3),
            f"± {number(mean['acc_norm_stderr'], 2)}; {floor_note(mean)}",
        ),
    ]


def floor_note(scores: dict[str, Any]) -> str:
    """What a panel's acc_norm is worth."""
    worth = "" if "acc_norm" in scores["informative"] else ", not informative at this size"
    return f"floor {number(scores['floor']['acc_norm'], 3)}{worth}"


def funnel(facts: Facts) -> list[tuple[str, str, float, str]]:
    """From source rows to tokens: step, count, share of the largest step for a bar, and what became of the rest.

    Tokens are no documents: they have no bar.
    """
    m = facts.metrics
    read = sum(source.get("rows_in") or 0 for source in facts.sources.values())
    rows = sum(source.get("rows_kept") or 0 for source in facts.sources.values())
    steps = [("source rows read", read, "texts of all sources"), ("source rows kept", rows, "the rest is set aside")]
    if m["topics"]:
        dropped = m["topics"].get("rows_removed")
        steps.append(
            ("after topics", rows - (dropped or 0), f"{number(dropped)} web pages of dropped topics left out")
        )
    reasons = m["prompts"].get("removed") or {}
    not_drawn = reasons.get("not_drawn") or 0
    duplicates = sum(reasons.values()) - not_drawn
    steps += [
        ("prompts", m["prompts"]["rows_kept"], f"{number(not_drawn)} not drawn, {number(duplicates)} duplicates"),
        ("completions", m["generate"].get("completed"), f"{number(m['generate'].get('failed'))} failed"),
        *((f"after {name}", m[name]["rows_kept"], f"{number(m[name]['rows_removed'])} removed") for name in FILTERS),
    ]
    steps = [step for step in steps if step[1]]
    most = max(count for _, count, _ in steps)
    bars = [(name, number(count), count / most, note) for name, count, note in steps]
    tokens = m["tokenize_corpus"].get("train", {}).get("tokens")
    return [*bars, ("tokens to train on", number(tokens), 0.0, "with natural text and copies, as the mix says")]


def accounts(facts: Facts) -> list[list[str]]:
    """Rows in, kept and removed of each stage that filters."""
    rows = []
    for stage in ("prompts", *FILTERS):
        m = facts.metrics[stage]
        reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in m["removed"].items() if count)
        rows.append([stage, number(m["rows_in"]), number(m["rows_kept"]), number(m["rows_removed"]), reasons or DASH])
    m = facts.metrics["generate"]
    failed = ", ".join(f"{reason} {count:,}" for reason, count in m.get("failed_by_reason", {}).items())
    rows.insert(1, ["generate", *(number(m.get(k)) for k in ("requests", "completed", "failed")), failed or DASH])
    return rows


def by_cell(facts: Facts) -> list[list[str]]:
    """Of each source and style its completions, and the share that each stage removed of what it got."""
    stages = {stage: facts.metrics[stage].get("cells", {}) for stage in FILTERS}
    rows = []
    for cell, first in sorted(stages[FILTERS[0]].items()):
        if is_natural(cell):
            continue
        counts = [cells.get(cell, {}) for cells in stages.values()]
        lost = [share(n["rows_removed"] / n["rows_in"]) if n.get("rows_in") else DASH for n in counts]
        rows.append([cell.replace("_", " "), number(first["rows_in"]), *lost, number(counts[-1].get("rows_kept"))])
    return rows


def sources(facts: Facts) -> list[list[str]]:
    """The sources of the seed texts."""
    return [
        [
            name,
            number(m.get("rows_kept")),
            number(m.get("rows_removed")),
            number(m.get("licence")),
            f"{m['dataset']} @ {str(m.get('revision'))[:12]}" if m.get("dataset") else DASH,
        ]
        for name, m in facts.sources.items()
    ]


def topic_rows(facts: Facts) -> list[list[str]]:
    """Topics by size, with the decision."""
    topics = facts.metrics["topics"]
    dropped = topics.get("dropped", [])
    by_size = sorted(topics.get("rows_by_topic", []), key=lambda row: (-row["rows"], row["topic"]))
    return [[r["topic"], number(r["rows"]), "dropped" if r["topic"] in dropped else "kept"] for r in by_size]


def topics_note(facts: Facts) -> str:
    """How the topics were decided."""
    m, label = facts.metrics["topics"], facts.metrics["label"]
    return (
        f"{number(m.get('clusters'))} clusters, {number(label.get('labelled_by_model'))} named by the model and"
        f" {number(label.get('labelled_by_keywords'))} by their keywords; {number(m.get('topics_kept'))} topics kept,"
        f" {number(m.get('topics_dropped'))} dropped."
    )


def pilot(facts: Facts) -> list[list[str]]:
    """The pilot's cells."""
    return [
        [
            cell,
            number(m.get("completions")),
            m.get("opening") or DASH,
            *(share(m.get(f"{name}_share")) for name in PILOT_SHARES),
            f"{m.get('examples', {}).get('name', '')} {share(m.get('name_share'))}".strip(),
            *(number(m.get(name), 3) for name in ("distinct_2", "compression_ratio")),
        ]
        for cell, m in facts.metrics["pilot"].get("cells", {}).items()
    ]


def contamination_note(facts: Facts) -> str:
    """What the corpus was searched for."""
    m = facts.metrics["decontaminate"]
    items, rules = m.get("benchmark_items", {}), m.get("rules", {})
    by_rule = "; ".join(f"the {rule} ratio finds {number(rules.get(rule, {}).get('documents'))}" for rule in RULES)
    return (
        f"{number(items.get('checked'))} benchmark items were searched for in {number(m['rows_in'])} documents, first"
        f" by shared 10-grams, then by the length of the matched text ({number(items.get('short'))} short items as"
        f" wholes); {number(m['rows_removed'])} documents were removed ({by_rule}). The table counts documents,"
        " distinct items in brackets; metrics/decontaminate.md has more."
    )


def contamination_table(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Contaminated documents by benchmark and source: the head and the rows."""
    columns = sorted({row["source"] for row in facts.contamination})
    counts = {(r["task"], r["source"]): f"{r['documents']} ({r['items']})" for r in facts.contamination}
    tasks = sorted({row["task"] for row in facts.contamination} | facts.metrics["benchmarks"].get("tasks", {}).keys())
    tasks = tasks if columns else []
    return ["benchmark", *columns], [[task, *(counts.get((task, c), DASH) for c in columns)] for task in tasks]


def mix_rows(facts: Facts) -> list[list[str]]:
    """What the model is trained on, by component."""
    return [
        [
            name,
            share(m["share"]),
            *(number(m[key]) for key in ("tokens", "documents")),
            number(m["copies"], 3),
            number(m["available_tokens"]),
        ]
        for name, m in facts.metrics["mix"]["components"].items()
    ]


def model_rows(facts: Facts) -> list[list[str]]:
    """Facts of training and export."""
    m, out = facts.metrics["train"], facts.metrics["export"]
    names = {
        "parameters": "parameters",
        "vocabulary": "vocabulary",
        "steps": "steps",
        "tokens": "tokens seen",
        "epochs": "epochs",
        "train_loss": "training loss, last steps",
        "validation_loss": "validation loss",
        "validation_perplexity": "validation perplexity",
        "backend": "trainer",
        "precision": "precision",
    }
    rows = [[label, number(m.get(name))] for name, label in names.items()]
    return [*rows, ["exported logits differ by at most", number(out.get("logits_max_difference"), 2)]]


SCORE_HEAD = ["benchmark", "items", *(part for name in ("bpb", "acc_norm", "acc") for part in (name, "±", "floor"))]


def score_rows(facts: Facts) -> list[list[str]]:
    """Scores by benchmark and panel, as SCORE_HEAD has them, and which of them say something."""
    m = facts.metrics["evaluate"]
    panels = [(f"average: {name}", scores) for name, scores in m["panels"].items()]
    rows = []
    for name, scores in [*m["tasks"].items(), *panels]:
        row = [name.replace("_", " "), number(scores["items"])]
        for metric in ("bpb", "acc_norm", "acc"):
            values = (scores[metric], scores[f"{metric}_stderr"], scores["floor"][metric])
            row += [DASH if value is None else f"{value:.3f}" for value in values]
        rows.append([*row, ", ".join(scores["informative"]) or "none: not informative at this size"])
    return rows


def heldout_rows(facts: Facts) -> list[list[str]]:
    """Bits per byte of each held-out set."""
    rows = []
    for name, scores in facts.metrics["evaluate"]["heldout"].items():
        sizes = [number(scores["documents"]), number(scores["bytes"])]
        rows.append([name, *sizes, number(scores["bpb"]), number(scores["bpb_stderr"], 2)])
    return rows


def baselines_head(facts: Facts) -> list[str]:
    """The head of the table of baselines."""
    name = next(iter(facts.metrics["evaluate"]["panels"]))
    return ["model", "held-out bits per byte", "±", f"{name}: bits per byte", "±", f"{name}: acc_norm", "±"]


def baseline_rows(facts: Facts) -> list[list[str]]:
    """Floor, our model and other people's, on the same items; the floor is evaluate's, on all of its items."""
    if not facts.baselines:
        return []
    floor = next(iter(facts.metrics["evaluate"]["panels"].values()))["floor"]
    rows = [["highest floor", DASH, DASH, number(floor["bpb"]), DASH, number(floor["acc_norm"], 3), DASH]]
    for name in ("ours", *(name for name in facts.baselines if name != "ours")):
        heldout, mean = (facts.baselines[name][part] for part in ("heldout", "panel"))
        values = [(heldout, "bpb", 4), (mean, "bpb", 4), (mean, "acc_norm", 3)]
        cells = [cell for one, key, n in values for cell in (number(one[key], n), number(one[f"{key}_stderr"], 2))]
        rows.append(["this corpus's model" if name == "ours" else name, *cells])
    return rows


def baselines_note(facts: Facts) -> str:
    """What the models were scored on."""
    if not facts.baselines:
        return ""
    ours = facts.baselines["ours"]
    return (
        f"{ours['panel']['items']} items and {ours['heldout']['documents']} held-out documents, the same for every"
        " model; the floor is that of all items. Bits per byte can be compared between tokenizers, since bytes are"
        " the text's own: a tokenizer with longer tokens has fewer of them to predict, each worth more bits."
    )


def published_rows(facts: Facts) -> list[list[str]]:
    """Published scores, ours of the same model next to them, and who published them."""
    rows = []
    for name, scores in facts.metrics["baselines"].get("models", {}).items():
        published = scores["published"] or {"scores": {}}
        for task, one in published["scores"].items():
            values = [number(one["published"], 3), number(one["ours"], 3), number(one["stderr"], 2)]
            source = f"{published['metric']}; {published['source']}"
            rows.append([name, task, *values, number(one["items"]), source])
    return rows


def cut_note(facts: Facts) -> str:
    """How many items did not fit the model; empty when all did."""
    cut = sum(scores["cut"] for scores in facts.metrics["evaluate"]["tasks"].values())
    note = "items are longer than the model and were scored without the beginning of their context."
    return f"{cut} {note}" if cut else ""


def run_rows(facts: Facts) -> list[list[str]]:
    """What made the corpus and the model."""
    m = facts.metrics
    tokens = m["tokenize_corpus"]
    maker = m["generator"]
    trained = (
        f"{number(maker.get('parameters'))} parameters on {number(maker.get('demonstrations'))} demonstrations,"
        f" final loss {number(maker.get('final_loss'), 3)}"
    )
    embedder = f"{m['embed'].get('model')} @ {m['embed'].get('revision')}" if m["embed"] else DASH
    return [
        *[["generation model", f"{model} @ {revision}"] for model, revision in facts.generators],
        *([["trained here", trained]] if "parameters" in maker else []),
        ["embedding model", embedder],
        ["tokenizer", f"{number(tokens.get('tokenizer'))}, {number(tokens.get('vocab_size'))} tokens"],
        ["tokens to train on", number(tokens.get("train", {}).get("tokens"))],
        ["tokens to validate", number(tokens.get("validation", {}).get("tokens"))],
        ["dataset hash", number(tokens.get("dataset_hash"))],
    ]

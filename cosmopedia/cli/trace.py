"""trace: say where a document came from, or what came from a source.

Reads the tables of this checkout, or of a revision from DVC's cache; docs/lineage.md shows examples.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, print_table, visible
from cosmopedia.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cosmopedia.tracing.corpus import Corpus

app = new_app()
WIDTH = 110  # characters of a line with running text in a pipe
ID = re.compile(r"\S{6,}")  # what is looked up as an id first
MARKS = {"=": ("", "", ""), "-": ("[-", "-]", "red"), "+": ("{+", "+}", "green")}


@app.command(epilog="Example: cosmo trace --licence CC-BY-NC-SA-3.0 --without")
def trace(
    what: Annotated[str | None, typer.Argument(help="A completion's id, a prompt's, or a piece of text.")] = None,
    source: Annotated[str | None, typer.Option(help="Documents of this source.")] = None,
    template: Annotated[str | None, typer.Option(help="Of this template, such as web/wikihow.")] = None,
    source_row: Annotated[str | None, typer.Option(help="Of this source row.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of source rows with this licence.")] = None,
    topic: Annotated[str | None, typer.Option(help="Of source rows with this topic.")] = None,
    without: Annotated[bool, typer.Option("--without", help="Show what a rerun without them would cost.")] = False,
    ids: Annotated[Path | None, typer.Option(help="Write the ids of all of them to this file.")] = None,
    rev: Annotated[str | None, typer.Option(help="A git revision or experiment; default: this checkout.")] = None,
    read_gb: Annotated[float, typer.Option(min=0, help="GB of text that a search reads at most.")] = 20.0,
    limit: Annotated[int, typer.Option(min=1, help="Matches of a search that are shown.")] = 10,
    full: Annotated[bool, typer.Option("--full", help="Show whole texts.")] = False,
    as_json: Json = False,
) -> None:
    """Say where a document of the corpus came from, what the stages did with it, and which models are trained on it.

    With options instead: the documents that come from something, by source and style, and the models affected.
    A piece of text is looked for in the corpus, and if it is not there in what was generated; --source narrows that.
    """
    from cosmopedia.tracing.corpus import Corpus

    options = {"source": source, "template": template, "source_row": source_row, "licence": licence, "topic": topic}
    filters = {name: value for name, value in options.items() if value is not None}
    if what is None and not filters:
        raise ConfigError("trace wants an id, a piece of text, or one of the options; `cosmo trace --help` has them")
    if what is not None and set(filters) - {"source"}:
        raise ConfigError("an id or a text goes with no option but --source; leave one of them out")
    corpus = Corpus(version(rev))
    if what is None:
        backward(corpus, filters, without, given(ids) if ids else None, as_json)
    else:
        forward(corpus, what, source, read_gb, limit, full, as_json)


def version(rev: str | None) -> Any:
    """This checkout, or the revision that was named."""
    from cosmopedia.execution.versions import Version, find
    from cosmopedia.tracing.corpus import DOCUMENTS

    if rev is None:
        return Version("workspace", "folder")
    outs = [f"data/{stage}" for stage in reversed(DOCUMENTS)]
    return find(rev, given(Path(rev)), outs, lambda _: True, f"has no document table ({', '.join(outs)})")


def forward(
    corpus: "Corpus", what: str, source: str | None, read_gb: float, limit: int, full: bool, as_json: bool
) -> None:
    """Print the histories of an id's documents, or of the one that a text is in, or the documents that have it."""
    from cosmopedia.cli.stages import stage_modules
    from cosmopedia.tracing.forward import trace as trace_id
    from cosmopedia.tracing.fragment import Matches, search

    hasher = next(module.template_hash for module in stage_modules("templates"))
    matches = Matches()
    histories = trace_id(corpus, what, hasher) if ID.fullmatch(what) else []
    if not histories:
        if not what.strip():
            raise ConfigError("the piece of text is empty; give an id or some words")
        matches = search(corpus, what, limit, read_gb, source)
        if len(matches.rows) == 1:
            histories = trace_id(corpus, matches.rows[0]["id"], hasher)
    if as_json:
        search_read = {"read_bytes": matches.read, "unread_bytes": matches.unread}
        print_json({"documents": histories, "matches": matches.rows, **search_read, "missing": corpus.missing})
    elif histories:
        for history in histories:
            print_history(history, full)
    elif matches.rows:
        print_table(
            ["document", "cell", "stage", "text"],
            ([row["id"], row["cell"], row["stage"], row["excerpt"]] for row in matches.rows),
        )
        typer.echo(f"\n{len(matches.rows)} documents have it; `cosmo trace <document>` shows where one came from")
    say_what_is_missing(corpus, matches)
    if not histories and not matches.rows:
        raise DataError(f"{visible(what)!r} is no id in these tables, and in no text that was read{_hint(corpus)}")


def _hint(corpus: "Corpus") -> str:
    return f"; {'; '.join(corpus.missing.values())} may bring it" if corpus.missing else ""


def say_what_is_missing(corpus: "Corpus", matches: Any = None) -> None:
    """Notes on stderr: outs that are not here, and text that the bound left unread."""
    for out, command in corpus.missing.items():
        print(f"note: {out} is not here, so what it knows is left out; `{command}` brings it", file=sys.stderr)
    if matches is not None and matches.unread:
        print(
            f"note: {matches.read / 1e9:.1f} GB of text were read, {matches.unread / 1e9:.1f} GB were not; raise"
            " --read-gb, or narrow the search with --source",
            file=sys.stderr,
        )


def print_history(history: dict[str, Any], full: bool) -> None:
    """One document, part by part."""
    from cosmopedia.tracing.wording import groups

    for title, rows in groups(history, full):
        print_table([visible(title), ""], ((name, _cell(value)) for name, value in rows), piped_width=WIDTH)
        typer.echo()


def _cell(value: Any) -> Any:
    """A value; the pieces of a diff in the marks of wdiff, and in colour."""
    if not isinstance(value, list):
        return value
    from rich.text import Text

    text = Text()
    for kind, words in value:
        start, end, style = MARKS[kind]
        text.append(f"{start}{visible(words)}{end}", style=style)
    return text


def backward(corpus: "Corpus", filters: dict[str, str], without: bool, ids: Path | None, as_json: bool) -> None:
    """Print what comes from something, and with `without` what the corpus would be without it."""
    from cosmopedia.tracing import backward as scans

    report = scans.affected(corpus, filters)
    if ids:
        scans.write_ids(corpus, report["stage"], filters, ids)
    if without:
        report["without"] = scans.without(corpus, report)
    if as_json:
        print_json({**report, "missing": corpus.missing})
        return
    cells = (
        [c["source"], c["style"], _number(c["generated"]), _number(c["documents"]), _number(c["tokens"])]
        for c in report["cells"]
    )
    total = ["all", "", _number(report["generated"]), _number(report["documents"]), _number(report["tokens"])]
    print_table(
        ["source", "style", "completions", f"in data/{report['stage']}", "tokens"], [*cells, total], right=(2, 3, 4)
    )
    typer.echo()
    rows = [("models", ", ".join(" and ".join(model["folders"]) for model in report["models"]) or "none here")]
    if mix := report["in_the_mix"]:
        rows.append(("mix", f"takes {mix['documents']:,} of them, {mix['tokens']:,} tokens with their repeats"))
    more = ["…"] if report["documents"] > len(report["sample_ids"]) else []
    rows.append(("documents", ", ".join([*report["sample_ids"], *more])))
    rows += [("all ids", str(ids))] if ids else []
    print_table(["affected", ""], rows)
    if without:
        typer.echo()
        print_table(["without them", ""], without_rows(report["without"]))
    say_what_is_missing(corpus)


def without_rows(costs: dict[str, Any]) -> list[tuple[str, str]]:
    """What a corpus without them costs, as (name, value)."""
    lost, left = costs["documents_lost"], costs["documents_left"]
    share = lost / max(lost + left, 1)
    rows = [
        ("lost", f"{lost:,} documents ({share:.1%}), {costs['tokens_lost']:,} tokens"),
        ("left", f"{left:,} documents, {costs['tokens_left']:,} tokens"),
        ("how", costs["edit"]),
        ("stages that rerun", ", ".join(costs["stages"])),
    ]
    if costs["completions_reused"] is not None:
        again = "keep their keys: what the store or DVC's cache has is not generated again"
        rows.append(("completions", f"{costs['completions_reused']:,} {again}"))
    if costs["new_completions_at_most"]:
        rows.append(
            ("new", f"at most {costs['new_completions_at_most']:,}: prompts.per_cell lets other rows take their place")
        )
    if costs["duplicates_that_may_return"]:
        rows.append(
            ("return", f"{costs['duplicates_that_may_return']:,} documents that were removed as duplicates of these")
        )
    if "cluster" in costs["stages"]:
        rows.append(("", "the web pages' clusters are made anew: a page whose topic changes gets a new prompt"))
    again = ", ".join(costs["models_to_train_again"]) or "none here"
    rows.append(("train again", f"{again} ({costs['training_tokens']:,} tokens of training)"))
    return rows


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"

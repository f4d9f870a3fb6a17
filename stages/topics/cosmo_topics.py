"""topics: show or propose decisions on topics, list gaps."""

from pathlib import Path
from typing import Annotated

import typer

from cosmopedia.cli.output import Json, new_app, print_json, print_table

app = new_app()


@app.callback(invoke_without_command=True, epilog="Example: cosmo topics")
def topics(context: typer.Context) -> None:
    """Show how each cluster is decided now (the default), or propose decisions for those without one."""
    if context.invoked_subcommand is None:
        show()


@app.command(epilog="Example: cosmo topics show --json")
def show(as_json: Json = False) -> None:
    """Show each cluster's decision, and what a new clustering split, merged or lost."""
    from stages.topics import proposals

    state = proposals.state()
    if as_json:
        print_json(state)
        return
    columns = ("cluster", "size", "label", "topic", "decision", "decided_by", "educational_score")
    heads = (*columns[:-2], "decided by", "score")
    print_table(heads, ([row[name] for name in columns] for row in state["clusters"]), right=(0, 1, 6))
    for sentence in state["sentences"]:
        typer.echo(sentence)


@app.command(epilog="Example: cosmo topics propose --dry-run")
def propose(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False, as_json: Json = False
) -> None:
    """Write an entry into curation/topics.yaml for each cluster without one: keep or drop with score, keywords, three
    lines of its pages and a reason to edit. Entries that decide a cluster by its label or keywords get its id, so that
    they follow it from now on."""
    from stages.topics import proposals

    proposed = proposals.propose(write=not dry_run)
    if as_json:
        print_json(proposed)
        return
    for entry in proposed["entries"]:
        score = "no score" if entry["score"] is None else f"score {entry['score']:g}"
        typer.echo(f"{entry['decision']}  {entry['topic']}  ({score}): {', '.join(entry['keywords'][:6])}")
        for line in entry["examples"]:
            typer.echo(f"      {line}")
    for topic, ids in proposed["clusters_added"].items():
        typer.echo(f"{topic}: follows {', '.join(ids)} from now on")
    for sentence in proposed["sentences"]:
        typer.echo(sentence)
    done = "would be written" if dry_run else "written"
    typer.echo(f"{len(proposed['entries'])} entries {done}; edit curation/topics.yaml, then dvc repro topics")


@app.command(epilog="Example: cosmo topics gaps --write curation/gaps.jsonl")
def gaps(
    write: Annotated[
        Path | None, typer.Option("--write", help="Write them as JSON lines, for the source `taxonomy`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the taxonomy's topics with too few documents, those that lack most first: what to write next. `source rows`
    are the documents whose source row is of the topic. What is written has the rows of earlier lists too."""
    from stages.coverage.gaps import gaps as find_gaps
    from stages.coverage.gaps import rows_to_write, write_gaps

    rows = find_gaps()
    if write is not None:
        write_gaps(write, rows_to_write())
    if as_json:
        print_json(rows)
        return
    heads = ("field", "topic", "documents", "source rows", "missing")
    lines = ((" / ".join(row["path"]), row["name"], row["documents"], row["seeds"], row["missing"]) for row in rows)
    print_table(heads, lines, right=(2, 3, 4))
    missing = sum(row["missing"] for row in rows)
    wanted = f" of {rows[0]['wanted']} each" if rows else ""
    typer.echo(f"{len(rows)} topics lack {missing} documents{wanted}")
    if write is not None:
        typer.echo(f"written to {write}; docs/topics.md says how to have them written")

"""diff: say what differs between two versions of the corpus.

A version is a git revision, a DVC experiment or a folder; docs/lineage.md shows an example.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, print_table, visible
from cosmopedia.core.errors import ConfigError

app = new_app()
STAGES = ("generate", "natural", "clean", "dedup", "decontaminate")


@app.command(epilog="Example: cosmo diff HEAD~1 --html diff.html")
def diff(
    a: Annotated[str, typer.Argument(help="A git revision, an experiment or a folder.")],
    b: Annotated[str | None, typer.Argument(help="The other one; default: this checkout.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Compare this stage's documents; default: the last that both have.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Texts that are shown of each kind.")] = 3,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser.")] = None,
    as_json: Json = False,
) -> None:
    """Say what differs between two versions of the corpus: rows added, removed and changed by source, style and
    audience, tokens, lengths, duplicates, contamination, openings and topics, with texts side by side.

    Rows are matched by source row, style, audience and sample number. Nothing is checked out.
    """
    from cosmopedia.dataset_diff import wording

    report = run(a, b, stage, samples)
    if html:
        from cosmopedia.core.files import write_text

        write_text(given(html), wording.page(report))
    if as_json:
        print_json(report)
        return
    if as_markdown:
        typer.echo(wording.markdown(report), nl=False)
        return
    typer.echo(visible(wording.headline(report)))
    for table in wording.tables(report):
        typer.echo(f"\n{table.title}")
        print_table(table.head, table.rows, right=[n for n, one in enumerate(table.align) if one == "r"])
    for sample in report["samples"]:
        print_sample(report, sample)


def run(a: str, b: str | None, stage: str | None, samples: int) -> dict[str, Any]:
    """The comparison of two versions by their names."""
    from cosmopedia.dataset_diff.compare import compare
    from cosmopedia.dataset_diff.report import report

    versions, chosen = versions_of(a, b, stage)
    return report(versions, chosen, compare(versions, chosen, samples), samples)


def versions_of(a: str, b: str | None, stage: str | None) -> tuple[tuple[Any, Any], str]:
    """Two versions by their names, and the stage whose documents are compared."""
    from cosmopedia.dataset_diff.compare import final_stage
    from cosmopedia.execution.versions import Version, find

    if stage is not None and stage not in STAGES:
        raise ConfigError(f"--stage {stage} has no documents; choose from {', '.join(STAGES)}")
    outs = [f"data/{one}" for one in ([stage] if stage else reversed(STAGES))]
    wanted = f"has no document table ({', '.join(outs)}); run the pipeline there, or dvc pull"
    first, second = (
        Version("workspace", "folder") if name is None else find(name, given(Path(name)), outs, lambda _: True, wanted)
        for name in (a, b)
    )
    return (first, second), final_stage((first, second), stage)


def print_sample(report: dict[str, Any], sample: dict[str, Any]) -> None:
    """A document's two texts, one next to the other; the words that differ are coloured."""
    from rich.text import Text

    from cosmopedia.dataset_diff.wording import sides

    why = f" ({sample['why']})" if sample["why"] else ""
    typer.echo(f"\n{sample['kind']}{why}: {visible(sample['cell'])}, {visible(sample['id'])}")
    texts = []
    for pieces in sides(sample):
        text = Text()
        for kind, words in pieces:
            text.append(visible(words), style={"-": "red", "+": "green"}.get(kind, ""))
        texts.append(text)
    head = [visible(report[side]["name"]) for side in "ab"]
    print_table(head, [texts], piped_width=160)

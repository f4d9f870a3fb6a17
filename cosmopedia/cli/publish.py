"""publish: send the corpus or a model to the Hugging Face hub.

Also writes the public summary of training content. Nothing leaves unless decontamination ran, the licences are known
to allow it, and no e-mail address or secret is in the texts. Repositories are private without `--public`. The token is
that of HF_TOKEN.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosmopedia.cli.checkout import given
from cosmopedia.cli.output import Json, new_app, print_json, print_table

if TYPE_CHECKING:
    from cosmopedia.publishing.release import Release

app = new_app(no_args_is_help=True)
Repo = Annotated[str, typer.Option(help="Repository on the hub, owner/name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, and list what would go up; nothing is sent.")]
Public = Annotated[bool, typer.Option("--public", help="A public repository; without it a private one.")]
NOBODYS = "owner/name"


@app.callback(epilog="Example: cosmo publish dataset --repo owner/name --dry-run")
def publish() -> None:
    """Put the corpus or a model on the Hugging Face hub, or write the public summary of training content."""


@app.command(epilog="Example: cosmo publish dataset --repo owner/name --dry-run")
def dataset(
    repo: Repo = NOBODYS,
    dry_run: DryRun = False,
    public: Public = False,
    mask: Annotated[
        bool, typer.Option("--mask", help="Replace e-mail addresses and secrets, also in prompts and seeds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish the corpus, its card and Croissant.

    The rows of data/corpus with Cosmopedia's six columns, and a configuration per source.
    """
    from cosmopedia.publishing.checks import settings
    from cosmopedia.publishing.dataset import CORPUS, build

    release = new_release("dataset", CORPUS, repo, dry_run)
    build(release, settings().allow, mask)
    send(release, dry_run, public, as_json)


@app.command(epilog="Example: cosmo publish model --repo owner/name --dry-run")
def model(
    repo: Repo = NOBODYS,
    dry_run: DryRun = False,
    public: Public = False,
    seed: Annotated[int, typer.Option(help="Which of models/export/seed-<n>.")] = 1,
    as_json: Json = False,
) -> None:
    """Publish an exported model.

    A folder of models/export, with scores, their intervals and the revision in its card.
    """
    from cosmopedia.publishing.checks import settings
    from cosmopedia.publishing.model import EXPORT, build

    release = new_release("model", EXPORT, repo, dry_run)
    build(release, settings().allow, seed)
    send(release, dry_run, public, as_json)


@app.command(epilog="Example: cosmo publish summary --out summary.md")
def summary(
    out: Annotated[Path | None, typer.Option(help="Write it here instead of printing it.")] = None,
) -> None:
    """Write the public summary of training content.

    EU AI Act, Article 53(1)(d), in the order of the AI Office's template; what a person must add is marked.
    """
    from cosmopedia.core.files import write_text
    from cosmopedia.publishing.summary import TO_ADD, training_summary

    text = training_summary()
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(given(out), text)
        typer.echo(f"{out}: {text.count(TO_ADD)} places to fill in, each marked {TO_ADD}")


def new_release(kind: str, out: Path, repo: str, dry_run: bool) -> "Release":
    """A release of the checked-out revision. `ConfigError` without a repository's name, a committed revision, a token,
    or where the committed dvc.lock has another hash for the out. A dry run needs none of them."""
    from cosmopedia.core.errors import ConfigError
    from cosmopedia.core.lineage import store_root
    from cosmopedia.execution.revision import date_of, git_revision
    from cosmopedia.publishing.checks import check_recorded
    from cosmopedia.publishing.hub import token
    from cosmopedia.publishing.release import Release

    revision = git_revision()
    if not dry_run:
        if repo == NOBODYS:
            raise ConfigError("--repo is missing; name the repository on the hub, owner/name, or give --dry-run")
        if revision == "unknown" or revision.endswith("-dirty"):
            raise ConfigError(
                f"the git revision is {revision!r}, by which nobody could make this again; commit your changes first"
            )
        check_recorded(out, revision)
        token()
    return Release(kind, repo, revision, date_of(revision), store_root() / "publish" / kind)


def send(release: "Release", dry_run: bool, public: bool, as_json: bool) -> None:
    """Upload a release, or list it."""
    from cosmopedia.publishing.hub import listing, upload

    files = release.files()
    if not dry_run:
        typer.echo(upload(release, public, typer.echo))
    elif as_json:
        print_json({"repo": release.repo, "private": not public, "files": [file.__dict__ for file in files]})
    else:
        print_table(["file", "bytes", "sha256"], listing(files), right=[1])
        size = sum(file.size for file in files)
        kind = f"{'public' if public else 'private'} {release.kind}"
        where = f"{kind} {release.repo}; they are in {release.folder}"
        typer.echo(f"\n{len(files)} files, {size:,} bytes, would go to the {where}")

"""natural: the documents of natural text that the mix names.

In: params (which components mix.preset names); data/sources/web.parquet (SOURCE) for the component `web`, whole texts;
for any other one the dataset in the profile (natural.datasets), local or from the hub at a pinned revision.
Out: data/natural/<component>-natural.parquet, several files if it is large (DOCUMENT: the text and where it is from;
nothing else), data/natural/rejected/rejected.parquet (REJECTED), metrics/natural.json.
Contract: a document's id is a hash of its row's id, or of its text where the row has none, so the order of the rows
makes no difference. Memory grows by 8 bytes per row. With the preset `synthetic` there is no document.
Run: python -m stages.natural
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.files import clear_folder
from cosmopedia.core.params import Params, load, profile_path, section
from cosmopedia.core.row_counts import RowCounts, write_metrics
from cosmopedia.corpus.components import SYNTHETIC
from cosmopedia.corpus.mix_params import MixParams
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.records.pins import WATCHED
from cosmopedia.records.reading import Record, read_records
from cosmopedia.tables.contracts import REJECTED, SOURCE
from cosmopedia.tables.parquet import TableWriter, read_rows
from stages.natural.documents import Component, write_component

WEB = Path("data/sources/web.parquet")
OUT, METRICS = Path("data/natural"), Path("metrics/natural.json")


class NaturalDataset(Params):
    """A dataset of documents."""

    dataset: str  # hub id, file or folder
    subset: str | None
    split: str | None
    revision: str | None  # commit of a hub dataset, pin of a local file
    text: str  # the column with the text, or with the turns of a conversation
    limit: int | None  # records read at most
    licence: str


class NaturalParams(Params):
    """Where the documents of components other than `web` come from."""

    datasets: dict[str, NaturalDataset]


def settings() -> tuple[NaturalParams, list[str]]:
    """The stage's params and the components to read. `ConfigError` for one that has no dataset, or a source's name."""
    params, mix = load("natural", NaturalParams), load("mix", MixParams)
    components, shares = mix.natural(), mix.weights()
    for name in [*params.datasets, *(name for name in components if name != "web")]:
        if name == SYNTHETIC or name in section("sources"):
            raise ConfigError(
                f"natural.datasets.{name}: the name is taken, by the synthetic part or by a source; give the component"
                " another one (web is the kept rows of that source, and has no dataset here)"
            )
    for name, own in params.datasets.items():
        if own.dataset.startswith(WATCHED):
            raise ConfigError(
                f"natural.datasets.{name}: DVC does not watch {own.dataset} for this stage; copy it to a folder"
                f" outside {WATCHED}, where `cosmo pin` writes its hash into the profile"
            )
    for name in components:
        if name != "web" and name not in params.datasets:
            others = ", ".join(preset for preset in mix.presets if preset != mix.preset)
            raise ConfigError(
                f"mix.preset {mix.preset!r} takes {float(shares[name]):.1%} of its tokens from {name!r}, for which"
                f" {profile_path()} names no dataset; add natural.datasets.{name} there, or choose another preset"
                f" ({others}) or profile"
            )
    return params, components


def web_records() -> Iterator[Record]:
    """The kept rows of the source `web` as records."""
    for row in read_rows([WEB], SOURCE):
        yield Record(row["row_id"], row)


def component_of(name: str, params: NaturalParams) -> tuple[Component, Iterator[Record], dict[str, str | None]]:
    """A component, its records, and where they are from, for the metrics."""
    if name == "web":
        return Component(name, "text", of_source=True), web_records(), {"dataset": str(WEB)}
    own = params.datasets[name]
    records, revision = read_records(own.dataset, own.subset, own.split, own.revision)
    place = {"dataset": own.dataset, "subset": own.subset, "split": own.split}
    about = {**place, "revision": revision, "licence": own.licence}
    return Component(name, own.text, revision=revision, licence=own.licence), islice(records, own.limit), about


def main() -> str:
    """Read every component; returns the summary line."""
    params, components = settings()
    clear_folder(OUT)
    total, metrics = RowCounts("natural"), {}
    with TableWriter(OUT / "rejected" / "rejected.parquet", REJECTED) as rejected:
        for name in sorted(components, key=lambda name: f"{name}/"):  # the order of the rejected rows' ids
            component, records, about = component_of(name, params)
            counts = write_component(component, records, OUT, rejected)
            if not counts.kept:
                raise DataError(
                    f"{about['dataset']}: none of {counts.rows_in} records could be used for the component {name!r}"
                    f" ({counts.first or 'there is none'}); correct natural.datasets.{name} or the dataset"
                )
            metrics[name] = {**counts.metrics(), **about}
            total.rows_in, total.kept = total.rows_in + counts.rows_in, total.kept + counts.kept
            total.removed.update(counts.removed)
    write_metrics(METRICS, {**total.metrics(), "components": metrics})
    kept = ", ".join(f"{row['rows_kept']} of {row['rows_in']} rows for {name}" for name, row in metrics.items())
    return kept or "the mix names no natural text"


if __name__ == "__main__":
    run_stage("natural", main)

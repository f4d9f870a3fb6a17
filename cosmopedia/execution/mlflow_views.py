"""The columns of a table of runs in MLflow's page, which a person would otherwise choose by hand.

MLflow keeps such a view as a tag of the experiment, under a name that the page's address has: JSON, compressed.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME = "scores"


def encoded_view(metrics: Sequence[str], params: Sequence[str]) -> str:
    """The tag's value: these columns, sorted by the name of the run, and up to twenty runs in charts."""
    state = {
        "selectedColumns": [*(f"metrics.`{name}`" for name in metrics), *(f"params.`{name}`" for name in params)],
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "searchFilter": "",
    }
    empty: dict[str, object] = {name: {} for name in ("columnWidths", "runsExpanded", "runsVisibilityMap")}
    empty |= {name: [] for name in ("columnOrder", "runsPinned", "runsHidden")}
    text = json.dumps(state | empty)
    return f"deflate;{b64encode(zlib.compress(text.encode())).decode('ascii')}"


def write_view(client: "MlflowClient", experiment: str, metrics: Sequence[str], params: Sequence[str]) -> None:
    """Give an experiment the view, and a description with its address."""
    tags = {
        f"mlflow.sharedViewState.{NAME}": encoded_view(metrics, params),
        "mlflow.note.content": (
            f"[Table with the scores in columns](#/experiments/{experiment}/runs?viewStateShareKey={NAME})."
            " Whether two arms differ is what `cosmo compare` says."
        ),
    }
    known = client.get_experiment(experiment).tags
    for name, value in tags.items():
        if known.get(name) != value:
            client.set_experiment_tag(experiment, name, value)

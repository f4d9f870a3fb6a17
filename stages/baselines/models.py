"""The weights of a baseline as a folder, and what others have published about it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params
from cosmopedia.generation.gguf import write_model
from cosmopedia.generation.local_model import find_local, is_here, locate
from cosmopedia.records.reading import resolve_revision

FILES = ["*.json", "*.safetensors"]  # of a hub model


class Published(Params):
    """Scores that others have measured and published."""

    source: str  # who says so, and with which harness
    metric: str  # of `scores`, as evaluate names it
    scores: dict[str, float] = Field(min_length=1)  # by task; "arc_easy and arc_challenge" is the mean of both; 0-1


class Baseline(Params):
    """A model of somebody else."""

    model: str  # hub id, folder, GGUF file or package:<import name>
    revision: str | None  # the hub's commit, or the pin of a folder or file; requirements.lock pins packages
    published: Published | None


class Weights(NamedTuple):
    """A model that can be scored."""

    folder: Path
    revision: str


def check_source(key: str, baseline: Baseline) -> None:
    """`ConfigError` for a model that is neither here nor a hub id with a revision."""
    if is_here(baseline.model):
        locate(baseline.model, key)
    elif baseline.revision is None:
        raise ConfigError(f"{key}: {baseline.model} is taken for a hub id, which needs a revision; or give a path")


@contextmanager
def weights_of(key: str, baseline: Baseline) -> Iterator[Weights]:
    """The model's folder, which may be gone afterwards: a GGUF file is converted for as long as it is scored."""
    if not is_here(baseline.model):
        revision = resolve_revision("model", baseline.model, baseline.revision)
        yield Weights(_from_hub(key, baseline.model, revision), revision)
        return
    local = find_local(baseline.model, baseline.revision, key)
    if local.gguf is None:
        yield Weights(local.folder, local.revision)
        return
    with tempfile.TemporaryDirectory(prefix="cosmopedia-baseline-") as converted:
        write_model(local.gguf, Path(converted))
        yield Weights(Path(converted), local.revision)


def _from_hub(key: str, model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key}: {model} at {revision} cannot be fetched from the hub ({reason}); check the id and the network,"
            " give a local folder, or leave the model out"
        ) from None

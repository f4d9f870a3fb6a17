"""Where and how the work runs: `clusters/<name>.yaml`, chosen by `$COSMO_CLUSTER` (a name or a path; default `local`).

Nothing in here may change an output's bytes, so it is neither a DVC param nor a dep.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.settings import Params, check, read_yaml


class Serving(Params):
    """How completions are served and asked for."""

    engine: Literal["cpu", "external"]  # cpu: start our CPU server; external: use `endpoints`
    endpoints: list[str]  # base URLs of running TGI servers, for engine: external
    instances: int = Field(ge=1)  # CPU servers to start
    concurrency: int = Field(ge=1)  # requests outstanding at each endpoint
    batch_size: int = Field(ge=1)  # sequences that one CPU server decodes together
    request_timeout_s: float = Field(gt=0)  # deadline of one request
    startup_timeout_s: float = Field(gt=0)  # until an endpoint must be healthy
    attempts: int = Field(ge=1)  # tries that a prompt has before it becomes a failure row
    max_failed_share: float = Field(ge=0, le=1)  # above this the stage stops


class Data(Params):
    """How row-parallel stages run (datatrove)."""

    executor: Literal["local"]
    tasks: int = Field(ge=1)  # shards of the work
    workers: int = Field(ge=1)  # processes at a time


class Training(Params):
    """How training runs."""

    launcher: Literal["local"]
    threads: int = Field(ge=0)  # torch threads; 0 leaves torch's own choice


class Cluster(Params):
    """One clusters/<name>.yaml."""

    serving: Serving
    data: Data
    training: Training


def load_cluster() -> Cluster:
    """The cluster file that `$COSMO_CLUSTER` names. `ConfigError` when it is missing or wrong."""
    name = os.environ.get("COSMO_CLUSTER") or "local"
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path("clusters") / f"{name}.yaml"
    return check(read_yaml(path), Cluster, str(path))

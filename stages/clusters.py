"""Where and how the work runs: `clusters/<name>.yaml`, chosen by `$COSMO_CLUSTER` (a name or a path; default `local`).

Nothing in here may change an output's bytes, so it is neither a DVC param nor a dep.
"""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.errors import ConfigError
from stages.settings import Params, check, read_yaml


class EndpointSpec(Params):
    """One server that somebody else runs; in the file a URL alone will do."""

    url: str = Field(pattern=r"^https?://[^\s@]+$")
    api: Literal["auto", "tgi", "openai"] = "auto"  # auto: TGI if it answers /info, else OpenAI-style /v1/completions
    gpus: int | None = Field(default=None, ge=0)  # null: serving.gpus
    token_env: str | None = None  # the environment variable with its bearer token; the token itself stands nowhere
    served_as: str | None = None  # the name that the server gives the generation model, if it is another one

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _base(cls, url: str) -> str:
        return url.rstrip("/")

    def token(self) -> str | None:
        """The bearer token. `ConfigError` when the variable that should hold it is not set."""
        if self.token_env is None:
            return None
        if not (token := os.environ.get(self.token_env, "").strip()):
            raise ConfigError(f"{self.url} wants a token, but ${self.token_env} is not set; export it and run again")
        return token


class Serving(Params):
    """How completions are served and asked for."""

    engine: Literal["cpu", "external"]  # cpu: start our CPU server; external: use `endpoints`
    endpoints: list[EndpointSpec]  # for engine: external; read again while a run goes on, so servers come and go
    instances: int = Field(ge=1)  # CPU servers to start
    gpus: int = Field(ge=0)  # of one instance, for GPU hours; 0: CPU
    tokens_per_second: float | None = Field(gt=0)  # of one instance, to forecast with before any was measured
    concurrency: int = Field(ge=1)  # requests outstanding at one endpoint, at most
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


def cluster_path() -> Path:
    """The file that `$COSMO_CLUSTER` names."""
    name = os.environ.get("COSMO_CLUSTER") or "local"
    return Path(name) if name.endswith((".yaml", ".yml")) else Path("clusters") / f"{name}.yaml"


def load_cluster() -> Cluster:
    """The cluster file that `$COSMO_CLUSTER` names. `ConfigError` when it is missing or wrong."""
    path = cluster_path()
    return check(read_yaml(path), Cluster, str(path))

"""Where and how the work runs: `compute/<name>.yaml`, chosen by `$COSMO_COMPUTE` (a name or a path; default `local`).

Nothing in here may change an output's bytes, so it is neither a DVC param nor a dep.
"""

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cosmopedia.errors import ConfigError
from cosmopedia.params import Params, check, read_yaml

SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY)(?!S_)", re.IGNORECASE)
SECRET_VALUE = re.compile(r"^(hf_|sk-|AKIA|ghp_)\w{8,}")
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$|\.(sqsh|sif)$")


class EndpointSpec(Params):
    """One server that somebody else runs; in the file a URL alone will do."""

    url: str = Field(pattern=r"^https?://[^\s@]+$")
    api: Literal["auto", "tgi", "openai"] = "auto"  # auto: TGI if it answers /info, else OpenAI-style /v1/completions
    gpus: int | None = Field(default=None, ge=0)  # null: serving.gpus
    token_env: str | None = None  # the environment variable with its bearer token; the token itself stands nowhere
    served_as: str | None = None  # the name that the server gives the generation model, if it is another one
    token_file: Path | None = None  # of our own servers: a file that only this user can read

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
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip()
        if self.token_env is None:
            return None
        if not (token := os.environ.get(self.token_env, "").strip()):
            raise ConfigError(f"{self.url} wants a token, but ${self.token_env} is not set; export it and run again")
        return token


class Instances(Params):
    """How many servers: `max` while there is work for them, never fewer than `min`; in the file a number will do."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _number_alone(cls, value: Any) -> Any:
        return {"min": value, "max": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ordered(self) -> "Instances":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def without_secrets(section: str, environment: dict[str, str]) -> dict[str, str]:
    """The environment as it is. `ConfigError` for what looks like a secret: job scripts can be read by others."""
    for name, value in environment.items():
        if SECRET_NAME.search(name) or SECRET_VALUE.search(value):  # the message must not show the value
            raise ConfigError(
                f"{section}.environment.{name} looks like a secret; take it out of the file and export it before you"
                " start the run: jobs inherit it"
            )
    return environment


class Ports(Params):
    """The ports that a site's firewall leaves open between its nodes, both ends included."""

    first: int = Field(ge=1024, le=65535)
    last: int = Field(ge=1024, le=65535)

    @model_validator(mode="after")
    def _ordered(self) -> "Ports":
        if self.first > self.last:
            raise ValueError(f"first {self.first} is more than last {self.last}")
        return self


class Container(Params):
    """In what the engine runs on the node."""

    runtime: Literal["pyxis", "apptainer", "docker"]
    image: str  # by digest (name@sha256:...), or a local .sqsh or .sif
    mounts: list[str] = Field(default_factory=list)  # host:container

    @field_validator("image")
    @classmethod
    def _pinned(cls, image: str) -> str:
        if not DIGEST.search(image):
            raise ValueError("an image is named by its digest (name@sha256:<64 hex>), or is a .sqsh or .sif file")
        return image


class Slurm(Params):
    """What one job asks Slurm for."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")  # minutes, [days-]hours:minutes:seconds
    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)  # a node
    cpus: int = Field(default=1, ge=1)  # a task
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    extra: list[str] = Field(default_factory=list)  # more options of sbatch, as --name=value
    setup: list[str] = Field(default_factory=list)  # lines of shell before anything else: module load, ulimit

    @field_validator("extra")
    @classmethod
    def _options(cls, extra: list[str]) -> list[str]:
        for option in extra:
            if not re.match(r"^--[a-z][a-z-]*(=.*)?$", option):
                raise ValueError(f"{option!r} is no option of sbatch; write --name=value")
        return extra

    def options(self) -> list[str]:
        """For sbatch's command line or a script's #SBATCH lines."""
        named = {"partition": self.partition, "account": self.account, "qos": self.qos, "mem": self.memory}
        found = [f"--{name}={value}" for name, value in named.items() if value is not None]
        found += [f"--time={self.time}", f"--nodes={self.nodes}", f"--cpus-per-task={self.cpus}"]
        return found + ([f"--gpus-per-node={self.gpus}"] if self.gpus else []) + self.extra

    def seconds(self) -> int:
        """`time` in seconds. Slurm's notation: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:...]."""
        days, _, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
        return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


class Driver(Slurm):
    """What `dvc repro` itself asks for as a job, and how it goes on after its time limit."""

    lead_seconds: int = Field(default=120, ge=10)  # before the limit: the stage is stopped, and the job requeued
    resubmit: int = Field(default=20, ge=0)  # times that this is done; 0: the run ends at the limit

    @model_validator(mode="after")
    def _in_time(self) -> "Driver":
        if self.lead_seconds >= self.seconds():
            raise ValueError(f"lead_seconds {self.lead_seconds} leaves nothing of time {self.time!r}")
        return self


class Serving(Params):
    """How completions are served and asked for."""

    engine: Literal["cpu", "tgi", "vllm", "external"]  # cpu: our CPU server; external: use `endpoints`
    launcher: Literal["local", "slurm"] = "local"  # of our own servers: processes here, or jobs
    endpoints: list[EndpointSpec]  # for engine: external; read again while a run goes on, so servers come and go
    instances: Instances
    gpus: int = Field(ge=0)  # of one instance, for GPU hours; 0: CPU
    tokens_per_second: float | None = Field(gt=0)  # of one instance, to forecast with before any was measured
    concurrency: int = Field(ge=1)  # requests outstanding at one endpoint, at most
    batch_size: int = Field(ge=1)  # sequences that one CPU server decodes together
    request_timeout_s: float = Field(gt=0)  # deadline of one request
    startup_timeout_s: float = Field(gt=0)  # until an endpoint must be healthy
    attempts: int = Field(ge=1)  # tries that a prompt has before it becomes a failure row
    max_failed_share: float = Field(ge=0, le=1)  # above this the stage stops
    slurm: Slurm | None = None  # of a server's job, for launcher: slurm
    ports: Ports | None = None  # of servers that are jobs; null: any free port
    container: Container | None = None  # null: the engine is on the node's PATH
    arguments: list[str] = Field(default_factory=list)  # more of the engine's own options, as --name=value
    environment: dict[str, str] = Field(default_factory=dict)  # of the engine (HF_HOME); tokens: export them yourself
    restarts: int = Field(default=3, ge=0)  # of one instance that failed, in one run
    idle_minutes: float = Field(default=10.0, gt=0)  # that a fleet outlives its stage, for the next one to adopt it

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        return without_secrets("serving", environment)

    @model_validator(mode="after")
    def _together(self) -> "Serving":
        if self.launcher == "slurm" and self.slurm is None and self.engine != "external":
            raise ValueError("launcher slurm needs the section serving.slurm, at least its time")
        if self.engine in ("tgi", "vllm") and self.launcher == "local":
            raise ValueError(
                f"engine {self.engine} starts through launcher: slurm; a server that runs already is engine: external"
            )
        return self


class Data(Params):
    """How row-parallel stages run (datatrove)."""

    executor: Literal["local", "slurm", "ray"]  # processes here, job arrays, or the Ray at $RAY_ADDRESS
    tasks: int = Field(ge=1)  # shards of the work
    workers: int = Field(ge=1)  # processes or tasks at a time
    slurm: Slurm | None = None  # of one task, for executor: slurm; ray takes its cpus and memory
    retries: int = Field(default=2, ge=0)  # of an array's or Ray's task that failed

    @model_validator(mode="after")
    def _together(self) -> "Data":
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor slurm needs the section data.slurm, at least its time")
        return self


class Layout(Params):
    """How a training lies on processes, a GPU each: data, tensor and pipeline parallel."""

    dp: int = Field(default=1, ge=1)  # replicas; each takes its share of a batch
    tp: int = Field(default=1, ge=1)  # processes that share every matrix
    pp: int = Field(default=1, ge=1)  # processes that share the layers
    micro_batch: int | None = Field(default=None, ge=1)  # sequences in one forward pass; null: train.micro_batch

    @property
    def processes(self) -> int:
        return self.dp * self.tp * self.pp


class Training(Params):
    """How training runs. The transformers backend trains in the stage's own process, whatever stands here."""

    launcher: Literal["local", "slurm"]  # of nanotron: torchrun here, or as a job
    threads: int = Field(ge=0)  # torch threads of a process; 0 leaves torch's own choice
    layout: Layout = Layout()  # of nanotron's processes
    compile: bool = False  # nanotron's rotary positions, norms and gates by torch.compile; losses agree to rounding
    peak_tflops: float | None = Field(default=None, gt=0)  # of one GPU in bf16, dense: for MFU (H100 SXM: 989)
    checkpoint_minutes: float = Field(default=15.0, gt=0)  # at least so long between two; also before the end
    python: str = ".nanotron/bin/python"  # that has nanotron (make nanotron); in a container, that of the image
    slurm: Slurm | None = None  # of the job, for launcher: slurm; gpus: processes of one node
    container: Container | None = None  # null: none
    environment: dict[str, str] = Field(default_factory=dict)  # of the processes (NCCL_SOCKET_IFNAME)
    restarts: int = Field(default=3, ge=0)  # of a job that failed; requeued jobs do not count
    warn_seconds: int = Field(default=300, ge=10)  # before its time limit a job writes a checkpoint and is requeued

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        return without_secrets("training", environment)

    @model_validator(mode="after")
    def _together(self) -> "Training":
        if self.launcher == "slurm":
            if self.slurm is None:
                raise ValueError("launcher slurm needs the section training.slurm, at least its time")
            if self.layout.processes % self.slurm.nodes:
                raise ValueError(
                    f"dp x tp x pp = {self.layout.processes} processes do not fill {self.slurm.nodes} nodes evenly"
                )
            if self.slurm.gpus and self.layout.processes != self.slurm.nodes * self.slurm.gpus:
                raise ValueError(
                    f"dp x tp x pp = {self.layout.processes} processes, but training.slurm asks for"
                    f" {self.slurm.nodes} nodes x {self.slurm.gpus} GPUs"
                )
            if self.warn_seconds >= self.slurm.seconds():
                raise ValueError(f"warn_seconds {self.warn_seconds} leaves nothing of time {self.slurm.time!r}")
        if self.container is not None and self.container.runtime == "docker":
            raise ValueError("training runs in pyxis or apptainer, or without a container")
        return self


class Compute(Params):
    """One compute/<name>.yaml."""

    serving: Serving
    data: Data
    training: Training
    driver: Driver | None = None  # of `dvc repro` itself as a job (`cosmo cluster submit`)


def compute_path() -> Path:
    """The file that `$COSMO_COMPUTE` names; `$COSMO_CLUSTER`, its older name, still counts."""
    name = os.environ.get("COSMO_COMPUTE")
    if not name and (name := os.environ.get("COSMO_CLUSTER")):
        _warn_old_name()
    name = name or "local"
    return Path(name) if name.endswith((".yaml", ".yml")) else Path("compute") / f"{name}.yaml"


@cache
def _warn_old_name() -> None:
    print("warning: $COSMO_CLUSTER is now called $COSMO_COMPUTE; set that instead", file=sys.stderr, flush=True)


def load_compute() -> Compute:
    """The compute file that `$COSMO_COMPUTE` names. `ConfigError` when it is missing or wrong."""
    path = compute_path()
    return check(read_yaml(path), Compute, str(path))

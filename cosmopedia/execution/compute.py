"""Where and how the work runs: `compute/<name>.yaml`, chosen by `$COSMO_COMPUTE` (a name or a path; default `local`).

The keys of a section depend on its first one: `serving` on its engine (and the cpu engine's launcher), `data` on its
executor, `training` on its launcher. A file holds only keys that have an effect; any other is refused. Nothing in here
may change an output's bytes, so it is neither a DVC param nor a dep.
"""

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params, read_yaml
from cosmopedia.core.text import read_text
from cosmopedia.execution.redaction import redact, remember, secret_in

DIGEST = re.compile(r"[^-\s].*(@sha256:[0-9a-f]{64}|\.(sqsh|sif))")
VERSION = re.compile(r":v?(\d+)\.(\d+)\.(\d+)")  # in an image's tag
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SlurmName = Annotated[str, Field(pattern=r"^[\w.,:@%+=-]+$")]  # of a partition, an account, a QOS
Environment = dict[EnvironmentName, str]


class TokenPrice(Params):
    """What an endpoint charges, in your currency per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class EndpointSpec(Params):
    """One server; in the file, a URL is enough."""

    url: str = Field(pattern=r"^https?://[^\s@]+$")
    # auto: TGI if it answers /info, else OpenAI-style /v1/completions; chat: /v1/chat/completions
    api: Literal["auto", "tgi", "openai", "chat"] = "auto"
    gpus: int | None = Field(default=None, ge=0)  # null: serving.gpus
    token_env: EnvironmentName | None = None  # the environment variable that holds its bearer token
    served_as: str | None = None  # the server's name for the generation model, if it differs
    requests_per_minute: int | None = Field(default=None, ge=1)  # null: no limit
    tokens_per_minute: int | None = Field(default=None, ge=1)  # of prompts and completions together; null: no limit
    price: TokenPrice | None = None  # null: not paid by the token
    token_file: Path | None = None  # our own servers: a file that only this user can read

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
            return remember(read_text(self.token_file).strip())
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env, "").strip()
        if not token:
            raise ConfigError(f"{self.url} needs a token, but ${self.token_env} is not set; export it and run again")
        return remember(token)


class Instances(Params):
    """How many servers: `max` while there is work for them, at least `min`; in the file, a number is enough."""

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


class Ports(Params):
    """The ports that a site's firewall leaves open between its nodes, first and last included."""

    first: int = Field(ge=1024, le=65535)
    last: int = Field(ge=1024, le=65535)

    @model_validator(mode="after")
    def _ordered(self) -> "Ports":
        if self.first > self.last:
            raise ValueError(f"first {self.first} is more than last {self.last}")
        return self


class Container(Params):
    """The container that the engine or the training runs in."""

    runtime: Literal["pyxis", "apptainer", "docker"]
    image: str  # by digest (name@sha256:...), or a local .sqsh or .sif
    mounts: list[str] = Field(default_factory=list)  # host:container

    @field_validator("image")
    @classmethod
    def _pinned(cls, image: str) -> str:
        if not DIGEST.fullmatch(image):
            raise ValueError("name an image by its digest (name@sha256:<64 hex>), or give a .sqsh or .sif file")
        return image


class Slurm(Params):
    """What one job requests from Slurm."""

    partition: SlurmName | None = None
    account: SlurmName | None = None
    qos: SlurmName | None = None
    time: str = Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")  # minutes, [days-]hours:minutes:seconds
    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)  # per node
    cpus: int = Field(default=1, ge=1)  # per task
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    extra: list[str] = Field(default_factory=list)  # further options of sbatch, as --name=value
    setup: list[str] = Field(default_factory=list)  # shell lines that run first: module load, ulimit

    @field_validator("extra")
    @classmethod
    def _options(cls, extra: list[str]) -> list[str]:
        for option in extra:
            if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", option):
                raise ValueError(f"{option!r} is not an option of sbatch; write --name=value")
        return extra

    def options(self) -> list[str]:
        """For sbatch's command line or a script's #SBATCH lines."""
        named = {"partition": self.partition, "account": self.account, "qos": self.qos, "mem": self.memory}
        options = [f"--{name}={value}" for name, value in named.items() if value is not None]
        options += [f"--time={self.time}", f"--nodes={self.nodes}", f"--cpus-per-task={self.cpus}"]
        if self.gpus:
            options.append(f"--gpus-per-node={self.gpus}")
        return options + self.extra

    def seconds(self) -> int:
        """`time` in seconds. Slurm's notation: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:...]."""
        days, _, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
        return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


class Driver(Slurm):
    """What `dvc repro` requests when it is a job itself, and how it continues after its time limit."""

    lead_seconds: int = Field(default=120, ge=10)  # before the limit, the stage is stopped and the job requeued
    resubmit: int = Field(default=20, ge=0)  # at most so many times; 0: the run ends at the limit

    @model_validator(mode="after")
    def _in_time(self) -> "Driver":
        if self.lead_seconds >= self.seconds():
            raise ValueError(f"lead_seconds {self.lead_seconds} leaves nothing of time {self.time!r}")
        return self


class Requests(Params):
    """How requests are sent, whoever runs the servers."""

    tokens_per_second: float | None = Field(gt=0)  # of one instance, for a forecast before any was measured
    concurrency: int = Field(ge=1)  # requests in flight at one endpoint, at most
    request_timeout_s: float = Field(gt=0)  # deadline of one request
    startup_timeout_s: float = Field(gt=0)  # until an endpoint must be healthy
    attempts: int = Field(ge=1)  # tries per prompt before it becomes a failure row
    max_failed_share: float = Field(ge=0, le=1)  # above this the stage stops


class ExternalServing(Requests):
    """Servers that somebody else runs."""

    engine: Literal["external"]
    endpoints: list[EndpointSpec]  # read again during a run, so servers can join and leave
    gpus: int = Field(ge=0)  # of one endpoint, for GPU hours; 0: CPU

    @property
    def token_price(self) -> TokenPrice | None:
        """The highest of its endpoints' prices, for forecasts; None: none is paid by the token."""
        prices = [endpoint.price for endpoint in self.endpoints if endpoint.price is not None]
        if not prices:
            return None
        return TokenPrice(prompt=max(p.prompt for p in prices), completion=max(p.completion for p in prices))


class LocalServing(Requests):
    """Our CPU server, as processes on this machine."""

    gpus: ClassVar[int] = 0
    engine: Literal["cpu"]
    launcher: Literal["local"]
    instances: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # sequences that one server decodes together
    restarts: int = Field(default=3, ge=0)  # per instance and run, of a server that died


class SlurmServing(Requests):
    """Servers that are Slurm jobs."""

    launcher: Literal["slurm"] = "slurm"
    instances: Instances
    slurm: Slurm  # of one server's job
    ports: Ports | None = None  # null: any free port
    arguments: list[str] = Field(default_factory=list)  # further options of the engine, as --name=value
    environment: Environment = Field(default_factory=dict)  # of the engine (HF_HOME); tokens: export them yourself
    restarts: int = Field(default=3, ge=0)  # per instance and run, of a job that failed
    idle_minutes: float = Field(default=10.0, gt=0)  # servers outlive their stage, for the next one to adopt them


class CpuJobs(SlurmServing):
    """Our CPU server, as Slurm jobs."""

    gpus: ClassVar[int] = 0
    container: ClassVar[None] = None
    engine: Literal["cpu"]
    batch_size: int = Field(ge=1)  # sequences that one server decodes together


class GpuJobs(SlurmServing):
    """TGI or vLLM, as Slurm jobs."""

    engine: Literal["tgi", "vllm"]
    gpus: int = Field(ge=1)  # of one instance: the model is split over them
    container: Container | None = None  # null: the engine is on the node's PATH

    @field_validator("launcher", mode="before")
    @classmethod
    def _on_slurm(cls, launcher: object) -> object:
        if launcher == "local":
            raise ValueError("TGI and vLLM are Slurm jobs; for a server that is running, use engine: external")
        return launcher

    @property
    def warning(self) -> str | None:
        """What is known not to start, though the file is well-formed."""
        if self.engine != "tgi" or self.container is None or self.container.runtime != "apptainer":
            return None
        tag = VERSION.search(self.container.image)
        if tag and tuple(map(int, tag.groups())) < (3, 1, 1):
            return None
        return (
            "serving: TGI's images from 3.1.1 on do not start under apptainer, except for root: their Python lies in"
            " /root (text-generation-inference issue 3082); use engine: vllm (compute/slurm-h100-vllm.yaml), or an"
            " image up to 3.1.0"
        )


CpuServing = Annotated[LocalServing | CpuJobs, Field(discriminator="launcher")]
Serving = Annotated[CpuServing | GpuJobs | ExternalServing, Field(discriminator="engine")]


class Tasks(Params):
    """How row-parallel stages (datatrove) are split, wherever they run."""

    tasks: int = Field(ge=1)  # shards of the work
    workers: int = Field(ge=1)  # tasks at a time


class LocalData(Tasks):
    """Tasks are processes on this machine."""

    executor: Literal["local"]


class SlurmData(Tasks):
    """Tasks are Slurm job arrays."""

    executor: Literal["slurm"]
    slurm: Slurm  # of one task
    retries: int = Field(default=2, ge=0)  # of a task that failed


class RayData(Tasks):
    """Tasks run on the Ray cluster at `$RAY_ADDRESS`, else on a Ray that lives as long as the stage."""

    executor: Literal["ray"]
    cpus: int = Field(default=1, ge=1)  # per task
    memory_gb: float = Field(default=1.0, gt=0)  # per task
    retries: int = Field(default=2, ge=0)  # of a task that failed


Data = Annotated[LocalData | SlurmData | RayData, Field(discriminator="executor")]


class Layout(Params):
    """How a training is spread over processes, one GPU each: data, tensor and pipeline parallel."""

    dp: int = Field(default=1, ge=1)  # replicas; each takes its share of a batch
    tp: int = Field(default=1, ge=1)  # processes that share every matrix
    pp: int = Field(default=1, ge=1)  # processes that share the layers
    micro_batch: int | None = Field(default=None, ge=1)  # sequences per forward pass; null: train.micro_batch

    @property
    def processes(self) -> int:
        return self.dp * self.tp * self.pp


class TrainingProcesses(Params):
    """How nanotron's training runs, on this machine or as a job. The transformers backend uses none of it."""

    threads: int = Field(ge=0)  # per process next to a GPU; 0: torch decides. On a CPU train.cpu_threads counts
    layout: Layout = Layout()  # of nanotron's processes
    compile: bool = False  # nanotron's rotary positions, norms and gates by torch.compile; losses agree to rounding
    peak_tflops: float | None = Field(default=None, gt=0)  # of one GPU in bf16, dense: for MFU (H100 SXM: 989)
    checkpoint_minutes: float = Field(default=15.0, gt=0)  # the least time between two; there is one at the end too
    python: str = ".nanotron/bin/python"  # an interpreter that has nanotron (make nanotron)
    environment: Environment = Field(default_factory=dict)  # of the processes (NCCL_SOCKET_IFNAME)


class LocalTraining(TrainingProcesses):
    """torchrun on this machine."""

    container: ClassVar[None] = None
    launcher: Literal["local"]


class SlurmTraining(TrainingProcesses):
    """torchrun as a Slurm job. The transformers backend still trains in the stage's own process."""

    launcher: Literal["slurm"]
    slurm: Slurm  # of the job; gpus: processes per node
    container: Container | None = None  # null: none; else `python` is the image's own
    restarts: int = Field(default=3, ge=0)  # of a job that failed; requeued jobs do not count
    warn_seconds: int = Field(default=300, ge=10)  # before its time limit a job writes a checkpoint and is requeued

    @model_validator(mode="after")
    def _fits(self) -> "SlurmTraining":
        processes = self.layout.processes
        if processes % self.slurm.nodes:
            raise ValueError(f"dp x tp x pp = {processes} processes do not fill {self.slurm.nodes} nodes evenly")
        if self.slurm.gpus and processes != self.slurm.nodes * self.slurm.gpus:
            raise ValueError(
                f"dp x tp x pp = {processes} processes, but training.slurm requests {self.slurm.nodes} nodes x"
                f" {self.slurm.gpus} GPUs"
            )
        if self.warn_seconds >= self.slurm.seconds():
            raise ValueError(f"warn_seconds {self.warn_seconds} leaves nothing of time {self.slurm.time!r}")
        if self.container is not None and self.container.runtime == "docker":
            raise ValueError("training runs in pyxis or apptainer, or without a container")
        return self


Training = Annotated[LocalTraining | SlurmTraining, Field(discriminator="launcher")]


class Compute(Params):
    """One compute/<name>.yaml."""

    serving: Serving
    data: Data
    training: Training
    driver: Driver | None = None  # of `dvc repro` itself as a job
    price_per_gpu_hour: float | None = Field(default=None, gt=0)  # in your currency, for forecasts; null: not stated

    @property
    def uses_slurm(self) -> bool:
        sections = (self.serving, self.data, self.training)
        return any(isinstance(section, SlurmServing | SlurmData | SlurmTraining) for section in sections)

    @property
    def warnings(self) -> list[str]:
        """What is known not to work, though the file is well-formed."""
        warning = self.serving.warning if isinstance(self.serving, GpuJobs) else None
        return [warning] if warning else []


# What a section's keys depend on, for messages: pydantic names a variant by the values that chose it.
VARIANTS: dict[tuple[str, ...], type[Params]] = {
    ("serving", "external"): ExternalServing,
    ("serving", "cpu", "local"): LocalServing,
    ("serving", "cpu", "slurm"): CpuJobs,
    ("serving", "tgi"): GpuJobs,
    ("serving", "vllm"): GpuJobs,
    ("data", "local"): LocalData,
    ("data", "slurm"): SlurmData,
    ("data", "ray"): RayData,
    ("training", "local"): LocalTraining,
    ("training", "slurm"): SlurmTraining,
}
CHOICES = {"serving": ("engine", "launcher"), "data": ("executor",), "training": ("launcher",)}


def _variant(choice: tuple[str, ...]) -> str:
    """("serving", "cpu", "local") as "engine cpu and launcher local"."""
    section, *values = choice
    return " and ".join(f"{name} {value}" for name, value in zip(CHOICES[section], values, strict=False))


def _complaint(error: Any) -> str:
    """What is wrong with one key of a compute file, and what to do."""
    location = tuple(map(str, error["loc"]))
    choice = next((c for c in VARIANTS if location[: len(c)] == c), location[:0])
    section, keys = location[:1], location[max(len(choice), 1) :]
    kind, context = error["type"], error.get("ctx", {})
    # The key that chooses the variant is missing or unknown itself.
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        known = ", ".join(sorted({c[len(location)] for c in VARIANTS if c[: len(location)] == location}))
        wrong = f"is {context['tag']!r}" if kind == "union_tag_invalid" else "is missing"
        chooser = context["discriminator"].strip("'")
        return f"{location[0]}.{chooser} {wrong}; it must be one of {known}"
    key = ".".join((*section, *keys))
    if kind == "extra_forbidden" and choice and len(keys) == 1:
        others = [_variant(c) for c, model in VARIANTS.items() if c[0] == choice[0] and keys[0] in model.model_fields]
        if others:
            return f"remove {key}: it has no effect with {_variant(choice)}, only with {', or '.join(others)}"
        taken = ", ".join(VARIANTS[choice].model_fields)
        return f"{key} is not a key; with {_variant(choice)} the section takes {taken}"
    if kind == "extra_forbidden":
        return f"{key} is not a key; remove it, or look for a spelling mistake"
    if kind == "missing":
        return f"{key} is missing{f' (it is needed with {_variant(choice)})' if choice else ''}"
    if kind == "value_error":  # our own sentence
        return f"{key}: {context['error']}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"


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


def refusals(content: Any, key: str = "") -> Iterator[str]:
    """What may stand under no key of a compute file; the complaints repeat no secret.

    Secrets, since other users can read job scripts; and control characters, since a line break in a #SBATCH line
    begins a line of shell.
    """
    parent, _, name = key.rpartition(".")
    if isinstance(content, dict):
        for inner, value in content.items():
            yield from refusals(value, f"{key}.{inner}" if key else str(inner))
    elif isinstance(content, list):
        texts = [item for item in content if isinstance(item, str)]
        what = next(filter(None, map(secret_in, [*texts, " ".join(texts)])), None)  # joined: --api-key, then its value
        if what:
            yield _secret(key, what)
        for number, item in enumerate(content):
            if not isinstance(item, str) or CONTROL.search(item):
                yield from refusals(item, f"{key}.{number}")
    elif content is not None:
        text = str(content)
        variable = name.endswith("_env") and text.isupper()
        what = secret_in(text, "" if variable else name)
        if what:
            yield _secret(parent, name) if parent.endswith("environment") else _secret(key, what)
        elif CONTROL.search(text) and not re.search(r"\.setup\.\d+$", key):
            yield f"{key}: {text!r} holds a line break or another control character; write it in one line"


def _secret(key: str, what: str) -> str:
    return (
        f"{key}: {what} looks like a secret; remove it from the file and export it before you start the run: jobs"
        " inherit it (an endpoint names the variable in token_env; a line of setup may say NAME=$(cat <your file>))"
    )


def load_compute() -> Compute:
    """The compute file that `$COSMO_COMPUTE` names. `ConfigError` when it is missing or wrong."""
    path = compute_path()
    content = read_yaml(path)
    if refused := "; ".join(refusals(content)):
        raise ConfigError(f"{path}: {refused}")
    try:
        return Compute.model_validate(content)
    except ValidationError as error:
        raise ConfigError(redact(f"{path}: {'; '.join(map(_complaint, error.errors()))}")) from None

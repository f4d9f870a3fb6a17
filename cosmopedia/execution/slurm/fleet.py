"""A fleet of servers on Slurm: submitted, found, replaced, grown and shrunk, adopted, and always ended.

In: the cluster file and the model. Out: the servers that are healthy, asked for again and again. A fleet has a name
that follows from the model and the cluster file, so a driver that was killed and restarted, and the next stage, find
the jobs that still run (`squeue --name`) and take them over. What it knows lies in `<store root>/fleets/<name>/`:

    key                  what clients must show; only this user can read it
    servers/<job>.<restart>.json   a healthy server's address; of a job that Slurm does not run it is ignored
    drivers/<host>-<pid>           touched while a driver lives; servers end when none has been touched for long
    logs/<job>.log, server.sh      the jobs' output, and the script as it was submitted
"""

import contextlib
import json
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from cosmopedia.errors import ClusterError, ConfigError, CosmoError
from cosmopedia.execution.compute import EndpointSpec, Serving
from cosmopedia.execution.slurm import commands as slurm
from cosmopedia.lineage import store_root
from cosmopedia.rng import content_hash

TEMPLATES = Path("compute/templates")
LOOK_SECONDS = 2.0  # between two looks at the queue
END_SECONDS = 60.0  # for cancelled jobs to end
PASSED = [  # into docker; the other runtimes pass everything on
    *("HF_TOKEN", "HF_HOME", "API_KEY", "SHARD_UDS_PATH", "MASTER_PORT", "PROMETHEUS_PORT"),  # TGI
    *("VLLM_API_KEY", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"),
]
SERVED = {"engine", "gpus", "concurrency", "batch_size", "slurm", "container", "arguments", "environment", "ports"}
LAST = "last"  # touched by a stage that left the servers for the next one
COMES_BACK = "COSMO_DRIVER_COMES_BACK"  # names a file that exists while the driver waits for its next turn
LEASE_SECONDS = 60.0  # a driver that has not touched its file for so long is gone


def fleets_folder() -> Path:
    """Where fleets keep what they know; on a cluster, `$COSMO_STORE` or the checkout must be a shared file system."""
    return store_root() / "fleets"


class SlurmFleet:
    """Servers as jobs. A thread looks after them, so that a slow controller holds no request up."""

    def __init__(
        self,
        stage: str,
        folder: Path,
        model: str,
        revision: str,
        max_length: int,
        quantisation: str | None,
        serving: Serving,
    ):
        assert serving.slurm is not None
        self.stage, self.serving = stage, serving
        served = serving.model_dump_json(include=SERVED)
        place = fleets_folder().resolve()
        self.name = f"cosmo-{content_hash(place, model, revision, max_length, quantisation, served, size=5)}"
        self.folder = place / self.name
        self._values = self._filling(folder, model, revision, max_length, quantisation)
        self.failure: CosmoError | None = None
        self.jobs: dict[str, slurm.SlurmJob] = {}  # that wait or run
        self._servers: dict[str, str] = {}  # url -> job
        self._retiring: set[str] = set()  # urls that are to end once they are empty
        self._failed = 0
        self._healthy: set[str] = set()  # jobs that were
        self._cancelled: set[str] = set()  # by us: their end is no failure
        self._left: int | None = None
        self._idle: Callable[[str], bool] = lambda url: False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _filling(
        self, folder: Path, model: str, revision: str, max_length: int, quantisation: str | None
    ) -> dict[str, Any]:
        """What the template gets; everything that a shell sees is quoted."""
        serving = self.serving
        assert serving.slurm is not None
        quote = shlex.quote
        weights = str(folder.resolve())
        gpus = [f"--gpus-per-node={serving.gpus}"] * bool(serving.gpus and not serving.slurm.gpus)
        options = gpus + serving.slurm.options()
        return {
            "engine": serving.engine,
            "name": self.name,
            "log": slurm.log_option(self.folder.resolve() / "logs", "%j.log"),
            "options": [slurm.directive(option) for option in options],
            "setup": serving.slurm.setup,
            "checkout": quote(str(Path.cwd())),
            "environment": {name: quote(value) for name, value in serving.environment.items()},
            "python": quote(sys.executable),
            "fleet": quote(str(self.folder.resolve())),
            "startup": serving.startup_timeout_s,
            "idle": serving.idle_minutes * 60,
            "ports": f"--ports {serving.ports.first} {serving.ports.last}" if serving.ports else "",
            "folder": quote(weights),
            "model": quote(model),
            "revision": quote(revision),
            "max_length": max_length,
            "quantise": f"--quantize {quote(quantisation)}" if quantisation else "",
            "gpus": max(serving.gpus, 1),
            "batch_size": serving.batch_size,
            "concurrency": serving.concurrency,
            "arguments": " ".join(map(quote, serving.arguments)),
            "container": container_command(serving),
        }

    def script(self) -> str:
        """The job script. `ConfigError` names the template when it does not render."""
        path = TEMPLATES / "server.sh.j2"
        loader = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True)
        try:
            return loader.get_template(path.name).render(self._values)
        except TemplateError as error:
            raise ConfigError(
                f"{path}: {error or type(error).__name__}; mend the template, or restore it with git"
            ) from None

    def __enter__(self) -> "SlurmFleet":
        for name in ("servers", "drivers", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        key = self.folder / "key"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_urlsafe(24).encode())
            os.close(descriptor)
        self._lease = self.folder / "drivers" / f"{socket.gethostname()}-{os.getpid()}"
        self._lease.touch()
        try:
            # What is ending now was cancelled by an earlier driver; a job that is requeued looks the same, but waits.
            self._cancelled = {job.id for job in slurm.queue(name=self.name) if job.state == "COMPLETING"}
            self._look()
            if self.jobs:
                print(f"{self.stage}: {len(self.jobs)} job(s) of {self.name} adopted", file=sys.stderr, flush=True)
            self._submit()
        except BaseException:
            self.end()
            raise
        self._thread.start()
        return self

    def members(self) -> list[EndpointSpec]:
        """Healthy servers, without those that are to end."""
        api = "openai" if self.serving.engine == "vllm" else "tgi"
        key = self.folder / "key"
        urls = [url for url in list(self._servers) if url not in self._retiring]
        return [EndpointSpec(url=url, api=api, gpus=self.serving.gpus, token_file=key) for url in urls]

    def tend(self) -> BaseException | None:
        return self.failure

    def expecting(self) -> str | None:
        """A sentence while a server may still come, so that waiting for it is no failure."""
        coming = [job for job in list(self.jobs.values()) if job.id not in self._servers.values()]
        if not coming:
            return None
        return "; ".join(f"job {job.id} is {job.state.lower()} ({job.reason})" for job in coming)

    def demand(self, left: int, idle: Callable[[str], bool]) -> None:
        """How many requests are left to send or in flight, and whether the run has done with a server."""
        self._left, self._idle = left, idle

    @property
    def wanted(self) -> int:
        """Instances: as many as there is work for, between `min` and `max`."""
        bounds = self.serving.instances
        if self._left is None:
            return bounds.min
        return max(bounds.min, min(bounds.max, -(-self._left // self.serving.concurrency)))

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self._lease.touch()
                self._look()
                self._replace_and_grow()
                self._shrink()
            except CosmoError as error:
                self.failure = error
                return

    def _look(self) -> None:
        """What Slurm runs for this fleet, and where."""
        found = slurm.queue(name=self.name)
        now = {job.id: job for job in found if not job.ended and job.id not in self._cancelled}
        for job in found:
            if job.ended and job.id in self.jobs:
                self._ended(job)
        for lost in self.jobs.keys() - now.keys() - {job.id for job in found}:  # forgotten by the controller
            self._ended(self.jobs[lost])
        self.jobs = now
        registered: dict[str, tuple[int, str]] = {}
        for path in (self.folder / "servers").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(path.read_text(encoding="utf-8"))
                job, restart, url = str(content["job"]), int(content["restart"]), str(content["url"])
                running = job in now and now[job].state == "RUNNING" and restart == now[job].restarts
                self._healthy.add(job)
                if running and restart >= registered.get(job, (-1, ""))[0]:
                    registered[job] = restart, url
        self._servers = {url: job for job, (_, url) in registered.items()}
        self._retiring &= self._servers.keys()

    def _ended(self, job: slurm.SlurmJob) -> None:
        """A job that ended by itself: told with the end of its log, and counted if that was its own fault."""
        why = slurm.why_it_ended(job.id) or job.state.lower()
        told = f"job {job.id} of {self.name} ended ({why}); the end of its log:\n{slurm.tail(self._log_of(job.id))}"
        # Slurm ended it after it had served: in a run of a week that happens to every job, and again.
        self._failed += not (job.state in slurm.ENDED_BY_SLURM and job.id in self._healthy)
        if self._failed > self.serving.restarts * self.serving.instances.max:
            raise ClusterError(f"{told}\nthat was the last of {self.serving.restarts} restarts an instance")
        print(f"warning: {told}\nit is submitted again", file=sys.stderr, flush=True)

    def _log_of(self, job: str) -> Path:
        return self.folder / "logs" / f"{job}.log"

    def _replace_and_grow(self) -> None:
        if len(self.jobs) - len(self._retiring) < self.wanted:
            self._submit()

    def _submit(self) -> None:
        script = self.script()
        (self.folder / "server.sh").write_text(script, encoding="utf-8")
        while len(self.jobs) - len(self._retiring) < self.wanted:
            number = slurm.submit(script)
            self.jobs[number] = slurm.SlurmJob(number, "PENDING", self.name, "", "submitted", 0)

    def _shrink(self) -> None:
        """Servers that there is no work for are drained, and their jobs cancelled when they are empty."""
        spare = len(self.jobs) - len(self._retiring) - self.wanted
        waiting = [job for job in self.jobs.values() if job.state == "PENDING"]
        for job in waiting[: max(spare, 0)]:
            self._cancel(job.id)
            spare -= 1
        newest = sorted(self._servers, key=lambda url: int(self._servers[url]), reverse=True)
        self._retiring.update([url for url in newest if url not in self._retiring][: max(spare, 0)])
        for url in [url for url in self._retiring if self._idle(url)]:
            self._cancel(self._servers.pop(url))
            self._retiring.discard(url)

    def _cancel(self, job: str) -> None:
        self._cancelled.add(job)
        self.jobs.pop(job, None)
        slurm.cancel([job])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The next stage may adopt the servers, or the driver in its next turn; after an error nobody will."""
        if kind is None or (kind is KeyboardInterrupt and driver_comes_back()):
            self.leave()
        else:
            self.end()

    def leave(self) -> None:
        """Stop looking after the servers; they end by themselves when nobody adopts them."""
        self._stop()
        (self.folder / "drivers" / LAST).touch()
        self._lease.unlink(missing_ok=True)

    def end(self) -> None:
        """Cancel every job of the fleet, unless another driver lives on it."""
        self._stop()
        self._lease.unlink(missing_ok=True)
        if not in_use(self.name):
            end_fleet(self.name)

    def _stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()


def driver_comes_back() -> bool:
    """Whether the driver is stopped only to be requeued (cosmopedia/execution/slurm/driver_job.py)."""
    return bool(path := os.environ.get(COMES_BACK)) and Path(path).exists()


def _lives(lease: Path) -> bool:
    """Whether the driver of a lease lives: its process, on this machine; a recent touch, on another."""
    host, _, pid = lease.name.rpartition("-")
    if host == socket.gethostname() and pid.isdecimal():
        return Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    try:
        return lease.name != LAST and time.time() - lease.stat().st_mtime < LEASE_SECONDS
    except OSError:
        return False


def container_command(serving: Serving) -> str:
    """What stands before the engine's own command; the container sees the node's GPUs, network and caches."""
    container = serving.container
    if container is None:
        return ""
    quote, image = shlex.quote, container.image
    if container.runtime == "pyxis":
        mounts = f" --container-mounts={quote(','.join(container.mounts))}" if container.mounts else ""
        return f"srun --ntasks=1 --container-image={quote(image)}{mounts} --container-writable"
    if container.runtime == "apptainer":
        source = image if image.endswith((".sif", ".sqsh")) else f"docker://{image}"
        return " ".join(["apptainer exec --nv", *(f"--bind {quote(m)}" for m in container.mounts), quote(source)])
    passed = [*PASSED, *serving.environment]
    options = [*(f"--volume {quote(m)}" for m in container.mounts), *(f"--env {name}" for name in passed)]
    return " ".join(
        ["docker run --rm --gpus all --network host --ipc host", *options, "--entrypoint ''", quote(image)]
    )


def in_use(name: str) -> bool:
    """Whether a driver lives on the fleet."""
    return any(_lives(path) for path in (fleets_folder() / name / "drivers").glob("*"))


def end_fleet(name: str) -> list[str]:
    """Cancel what Slurm has under a fleet's name and wait until it is gone; returns the jobs' ids."""
    jobs = [job.id for job in slurm.queue(name=name) if not job.ended]
    slurm.cancel(jobs)
    left = slurm.wait_ended(jobs, END_SECONDS)
    if left:
        raise ClusterError(
            f"jobs {', '.join(job.id for job in left)} of {name} do not end; look at squeue and scancel"
        )
    return jobs


def known_fleets() -> list[str]:
    """Names of the fleets that this store has seen."""
    return sorted(path.name for path in fleets_folder().glob("cosmo-*"))

"""A fleet of servers on Slurm: submitted, discovered, replaced, grown and shrunk, adopted, and always ended.

In: the compute file and the model. Out: the healthy servers, which the run polls. A fleet's name follows from its job
script, so a driver that was killed and restarted, and the next stage, find the jobs that still run (`squeue --name`)
and adopt them; another model, compute file or template is another fleet. A fleet keeps its state in
`<store root>/fleets/<name>/`:

    key                            what clients must present; only this user can read it
    servers/<job>.<restart>.json   a healthy server's address; ignored unless Slurm runs that job
    drivers/<host>-<pid>           touched while a driver lives; servers end when none has been touched for long
    cancelled/<job>                a job that a driver cancelled; another one that is cancelled was so by a person
    logs/<job>.log, server.sh      the jobs' output, and the script as it was submitted
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from cosmopedia.core.errors import ClusterError, CosmoError
from cosmopedia.core.files import log_tail, write_text
from cosmopedia.core.lineage import store_root
from cosmopedia.core.rng import content_hash
from cosmopedia.execution.compute import CpuJobs, EndpointSpec, GpuJobs
from cosmopedia.execution.redaction import say
from cosmopedia.execution.slurm import commands
from cosmopedia.execution.slurm.job_scripts import (
    Shell,
    directive,
    in_container,
    log_option,
    options_of,
    render,
    words,
)
from cosmopedia.generation.complete import GenerationModel

LOOK_SECONDS = 2.0  # between two calls of squeue
END_SECONDS = 60.0  # for cancelled jobs to end
PASSED = [  # into docker; the other runtimes pass on everything
    *("HF_TOKEN", "HF_HOME", "API_KEY", "USAGE_STATS", "SHARD_UDS_PATH", "MASTER_PORT", "PROMETHEUS_PORT"),  # TGI
    *("VLLM_API_KEY", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"),
]
LAST = "last"  # touched by a stage that left the servers for the next one
COMES_BACK = "COSMO_DRIVER_COMES_BACK"  # names a file that exists while the driver waits to run again
LEASE_SECONDS = 60.0  # a driver that has not touched its file for so long is gone


def fleets_folder() -> Path:
    """Where fleets keep their state; on a cluster, `$COSMO_STORE` or the checkout must be on a shared file system."""
    return store_root() / "fleets"


class SlurmFleet:
    """Servers as jobs. A thread looks after them, so that a slow controller delays no request."""

    def __init__(self, stage: str, model: GenerationModel, serving: CpuJobs | GpuJobs):
        self.stage, self.model, self.serving = stage, model, serving
        # Its name is the hash of the job script without what may differ between two runs that can share the servers.
        shared = dict.fromkeys(("name", "log", "fleet", "checkout", "folder", "startup", "idle"), "")
        script = render("server.sh.j2", **_server(model, serving), **shared)
        folder = fleets_folder().resolve()
        self.name = f"cosmo-{content_hash(folder, script, size=5)}"
        self.folder = folder / self.name
        self.failure: CosmoError | None = None
        self.jobs: dict[str, commands.SlurmJob] = {}  # that wait or run
        self._servers: dict[str, str] = {}  # url -> job
        self._retiring: set[str] = set()  # urls of servers that end once they are empty
        self._failed = 0
        self._healthy: set[str] = set()  # jobs that were
        self._cancelled: set[str] = set()  # by us: their end is not a failure
        self._requests_left: int | None = None
        self._is_idle: Callable[[str], bool] = lambda url: False
        self._pending = commands.PendingReport(stage)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def script(self) -> str:
        """The job script. `ConfigError` names the template when it does not render."""
        return render(
            "server.sh.j2",
            **_server(self.model, self.serving),
            name=self.name,
            log=log_option(self.folder / "logs", "%j.log"),
            fleet=self.folder,
            checkout=Path.cwd(),
            folder=self.model.folder.resolve(),
            startup=self.serving.startup_timeout_s,
            idle=self.serving.idle_minutes * 60,
        )

    def __enter__(self) -> "SlurmFleet":
        for name in ("servers", "drivers", "cancelled", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        key = self.folder / "key"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_urlsafe(24).encode())
            os.close(descriptor)
        if isinstance(self.serving, GpuJobs) and self.serving.warning:
            say(f"warning: {self.serving.warning}")
        self._lease = self.folder / "drivers" / f"{socket.gethostname()}-{os.getpid()}"
        self._lease.touch()
        try:
            # A job that is ending now was cancelled by an earlier driver; a requeued one looks the same, but waits.
            self._cancelled = {job.id for job in commands.queue(name=self.name) if job.state == "COMPLETING"}
            self._look()
            if self.jobs:
                say(f"{self.stage}: {len(self.jobs)} job(s) of {self.name} adopted")
            self._submit()
        except BaseException:
            self.end()
            raise
        self._thread.start()
        return self

    def members(self) -> list[EndpointSpec]:
        """Healthy servers, except those that are about to end."""
        api = "openai" if self.serving.engine == "vllm" else "tgi"
        key = self.folder / "key"
        urls = [url for url in list(self._servers) if url not in self._retiring]
        return [EndpointSpec(url=url, api=api, gpus=self.serving.gpus, token_file=key) for url in urls]

    def tend(self) -> BaseException | None:
        return self.failure

    def expecting(self) -> str | None:
        """A sentence while a server may still come, so that waiting for it is not a failure."""
        coming = [job for job in list(self.jobs.values()) if job.id not in self._servers.values()]
        if not coming:
            return None
        now = datetime.now()
        waiting = [job.waiting(now) for job in coming if not job.nodes]
        starting = [f"job {job.id} is {job.state.lower()}, its server is not up yet" for job in coming if job.nodes]
        return "; ".join(starting + waiting)

    def demand(self, requests_left: int, is_idle: Callable[[str], bool]) -> None:
        """How many requests are left to send or in flight, and whether the run is done with a server."""
        self._requests_left, self._is_idle = requests_left, is_idle

    @property
    def wanted(self) -> int:
        """Instances: as many as there is work for, between `min` and `max`."""
        bounds = self.serving.instances
        if self._requests_left is None:
            return bounds.min
        needed = -(-self._requests_left // self.serving.concurrency)
        return max(bounds.min, min(bounds.max, needed))

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
        queue = commands.queue(name=self.name)
        alive = {job.id: job for job in queue if not job.ended and job.id not in self._cancelled}
        for job in queue:
            if job.ended and job.id in self.jobs:
                self._ended(job)
        for forgotten in self.jobs.keys() - alive.keys() - {job.id for job in queue}:  # by the controller
            self._ended(self.jobs[forgotten])
        self.jobs = alive
        self._pending.look(alive.values())
        registered: dict[str, tuple[int, str]] = {}
        for path in (self.folder / "servers").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(path.read_text(encoding="utf-8"))
                job, restart, url = str(content["job"]), int(content["restart"]), str(content["url"])
                running = job in alive and alive[job].state == "RUNNING" and restart == alive[job].restarts
                self._healthy.add(job)
                if running and restart >= registered.get(job, (-1, ""))[0]:
                    registered[job] = restart, url
        self._servers = {url: job for job, (_, url) in registered.items()}
        self._retiring &= self._servers.keys()

    def _ended(self, job: commands.SlurmJob) -> None:
        """Report a job that ended by itself with the end of its log, and count it if that was its own fault.

        `ClusterError` when a person cancelled it: that is not a failure to repair.
        """
        if job.state == "CANCELLED":
            if (self.folder / "cancelled" / job.id).exists():  # another driver of this fleet did
                return
            raise ClusterError(
                f"job {job.id} of {self.name} was {commands.BY_A_PERSON}, so the run stops; what was completed is in"
                " the store: run it again to go on"
            )
        why = commands.why_it_ended(job.id) or job.state.lower()
        log = self.folder / "logs" / f"{job.id}.log"
        report = f"job {job.id} of {self.name} ended ({why}); the end of its log:\n{log_tail(log)}"
        # Slurm may end a job that has served: in a run of a week that happens to every job, more than once.
        self._failed += not (job.state in commands.ENDED_BY_SLURM and job.id in self._healthy)
        if self._failed > self.serving.restarts * self.serving.instances.max:
            raise ClusterError(f"{report}\nthat was the last of {self.serving.restarts} restarts per instance")
        say(f"warning: {report}\nit is submitted again")

    def _replace_and_grow(self) -> None:
        if len(self.jobs) - len(self._retiring) < self.wanted:
            self._submit()

    def _submit(self) -> None:
        script = self.script()
        write_text(self.folder / "server.sh", script)
        while len(self.jobs) - len(self._retiring) < self.wanted:
            number = commands.submit(script)
            self.jobs[number] = commands.SlurmJob(number, "PENDING", self.name, "", "submitted", "", 0)

    def _shrink(self) -> None:
        """Drain servers that there is no work for, and cancel their jobs once they are empty."""
        spare = len(self.jobs) - len(self._retiring) - self.wanted
        waiting = [job for job in self.jobs.values() if job.state == "PENDING"]
        for job in waiting[: max(spare, 0)]:
            self._cancel(job.id)
            spare -= 1
        newest = sorted(self._servers, key=lambda url: int(self._servers[url]), reverse=True)
        self._retiring.update([url for url in newest if url not in self._retiring][: max(spare, 0)])
        for url in [url for url in self._retiring if self._is_idle(url)]:
            self._cancel(self._servers.pop(url))
            self._retiring.discard(url)

    def _cancel(self, job: str) -> None:
        self._cancelled.add(job)
        self.jobs.pop(job, None)
        _cancel(self.folder, [job])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The next stage may adopt the servers, or the driver when it runs again; after an error nobody will."""
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
        """Cancel every job of the fleet, unless another driver uses it."""
        self._stop()
        self._lease.unlink(missing_ok=True)
        if not in_use(self.name):
            end_fleet(self.name)

    def _stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()


def _server(model: GenerationModel, serving: CpuJobs | GpuJobs) -> dict[str, Any]:
    """What compute/templates/server.sh.j2 prints that makes a server what it is."""
    options = options_of(serving.slurm)
    if serving.gpus and not serving.slurm.gpus:
        options.append(directive(f"--gpus-per-node={serving.gpus}"))
    passed = [*PASSED, *serving.environment]
    return {
        "engine": serving.engine,
        "options": options,
        "setup": list(map(Shell, serving.slurm.setup)),
        "environment": serving.environment,
        "python": sys.executable,
        "ports": Shell(f"--ports {serving.ports.first} {serving.ports.last}" if serving.ports else ""),
        "model": model.model,
        "revision": model.revision,
        "loaded_from": model.loaded_from,
        "pinned": model.pinned,
        "max_length": model.max_length,
        "quantisation": model.quantisation,
        "gpus": serving.gpus,
        "batch_size": serving.batch_size if isinstance(serving, CpuJobs) else None,
        "concurrency": serving.concurrency,
        "arguments": words(serving.arguments),
        "docker": serving.container is not None and serving.container.runtime == "docker",
        "container": in_container(serving.container, 1, serving.slurm.cpus, writable=True, passed=passed),
    }


def driver_comes_back() -> bool:
    """Whether the driver was stopped only to be requeued (cosmopedia/execution/slurm/driver_job.py)."""
    mark = os.environ.get(COMES_BACK)
    return bool(mark) and Path(mark).exists()


def _lives(lease: Path) -> bool:
    """Whether a lease's driver lives: on this machine its process does; on another, it touched the lease recently."""
    host, _, pid = lease.name.rpartition("-")
    if host == socket.gethostname() and pid.isdecimal():
        return Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    try:
        return lease.name != LAST and time.time() - lease.stat().st_mtime < LEASE_SECONDS
    except OSError:
        return False


def in_use(name: str) -> bool:
    """Whether a living driver uses the fleet."""
    return any(_lives(path) for path in (fleets_folder() / name / "drivers").glob("*"))


def _cancel(folder: Path, jobs: Iterable[str]) -> None:
    """Cancel jobs of the fleet in `folder`, and note that no person did."""
    ids = list(jobs)
    for job in ids:
        (folder / "cancelled").mkdir(exist_ok=True)
        (folder / "cancelled" / job).touch()
    commands.cancel(ids)


def end_fleet(name: str) -> list[str]:
    """Cancel the jobs under a fleet's name and wait until they have ended; returns their ids."""
    jobs = [job.id for job in commands.queue(name=name) if not job.ended]
    _cancel(fleets_folder() / name, jobs)
    stuck = commands.wait_ended(jobs, END_SECONDS)
    if stuck:
        raise ClusterError(
            f"jobs {', '.join(job.id for job in stuck)} of {name} do not end; see squeue, and scancel them"
        )
    return jobs


def known_fleets() -> list[str]:
    """Names of the fleets in this store."""
    return sorted(path.name for path in fleets_folder().glob("cosmo-*"))

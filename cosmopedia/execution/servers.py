"""Servers for one run: our CPU server as local processes, Slurm jobs, or the external endpoints of the compute file.

In: the model and the compute file. Out: the servers that are up, which the run polls. Ours are ended whatever happens,
also when the driver is killed with SIGKILL (PR_SET_PDEATHSIG on Linux). Local ones log to `<store root>/logs`; a run
that ends well removes their logs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.files import log_tail
from cosmopedia.core.lineage import store_root
from cosmopedia.execution import child_process
from cosmopedia.execution.compute import (
    EndpointSpec,
    ExternalServing,
    LocalServing,
    Serving,
    SlurmServing,
    compute_path,
    load_compute,
)
from cosmopedia.execution.redaction import say
from cosmopedia.generation.complete import GenerationModel

CPU_SERVER = (sys.executable, "-m", "cosmopedia.cpu_server.app")
STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL


class Server:
    """One local server process, in a session of its own so that Ctrl-C reaches the driver alone."""

    def __init__(self, command: list[str], name: str):
        folder = store_root() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{name}.log"
        self.registration = folder / f"{name}.json"
        self.registration.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        self.process = child_process.start(
            [*command, "--registration", str(self.registration)], self.log, when_killed=signal.SIGKILL
        )

    def url(self) -> str | None:
        """Its address, once it has registered."""
        try:
            return json.loads(self.registration.read_text())["url"].rstrip("/")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError):
            raise ClusterError(f"{self.registration} is not a server's registration; see {self.log}") from None

    def death(self) -> str | None:
        """A sentence with the end of its log, if it has died."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return f"the server ended {how}; the end of {self.log}:\n{log_tail(self.log)}"

    def end(self) -> None:
        """SIGTERM, then SIGKILL, to the server and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
                break
        self.registration.unlink(missing_ok=True)


class Fleet(Protocol):
    """The servers of a run. `members` lists those that are up; `tend` looks after them and returns why to stop."""

    def members(self) -> list[EndpointSpec]: ...

    def tend(self) -> BaseException | None: ...

    def expecting(self) -> str | None:
        """A sentence while a server may still come, however long it takes."""
        ...

    def demand(self, requests_left: int, is_idle: Callable[[str], bool]) -> None:
        """Requests that are left to complete, and whether the run is done with a server."""
        ...


class _FixedSize:
    """What fleets of a fixed size have in common."""

    def expecting(self) -> str | None:
        return None

    def demand(self, requests_left: int, is_idle: Callable[[str], bool]) -> None:
        pass


class ExternalFleet(_FixedSize):
    """`serving.endpoints` of the compute file, which is read again when it changes: servers can join and leave."""

    def __init__(self, serving: ExternalServing):
        if not serving.endpoints:
            raise ConfigError("serving.engine is external, but serving.endpoints is empty; name a server's base URL")
        for endpoint in serving.endpoints:
            endpoint.token()  # fails before anything starts
        self._specs = serving.endpoints
        self._path = compute_path()
        self._stamp = _stamp(self._path)

    def members(self) -> list[EndpointSpec]:
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                serving = load_compute().serving
                if not isinstance(serving, ExternalServing):
                    raise ConfigError(f"{self._path}: serving.engine is not external any more")
                for endpoint in serving.endpoints:
                    endpoint.token()
                self._specs = serving.endpoints
            except ConfigError as error:  # half written, or wrong: the run goes on with what it had
                say(f"warning: {error}; the endpoints stay as they were")
        return self._specs

    def tend(self) -> BaseException | None:
        return None


def _stamp(path: Path) -> tuple[float, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime, status.st_size


class LocalFleet(_FixedSize):
    """Our CPU servers. One that dies during the run is started again, `serving.restarts` times."""

    def __init__(self, stage: str, arguments: list[str], serving: LocalServing):
        self.stage, self.arguments, self.serving = stage, arguments, serving
        self.servers: list[Server] = []
        self.logs: list[Path] = []
        self.restarts = serving.restarts * serving.instances
        self._started = time.monotonic()
        self._urls: dict[Server, str] = {}
        for _ in range(serving.instances):
            self._start()

    def _start(self) -> None:
        server = Server([*CPU_SERVER, *self.arguments], f"{self.stage}-{os.getpid()}-{len(self.logs)}")
        self.servers.append(server)
        self.logs.append(server.log)

    def members(self) -> list[EndpointSpec]:
        for server in list(self.servers):  # `tend` may change them meanwhile, in another thread
            url = None if server in self._urls else server.url()
            if url:
                self._urls[server] = url
        return [EndpointSpec(url=url, api="tgi", gpus=0) for url in list(self._urls.values())]

    def tend(self) -> BaseException | None:
        for server in list(self.servers):
            death = server.death()
            if death is None:
                continue
            if server not in self._urls or not self.restarts:  # it never came up, or dies again and again
                return ClusterError(death)
            say(f"warning: {death}\nit is started again")
            self.restarts -= 1
            self.servers.remove(server)
            self._urls.pop(server, None)
            self._start()
        late = next((server for server in self.servers if server not in self._urls), None)
        if late and not self._urls and time.monotonic() - self._started > self.serving.startup_timeout_s:
            return ClusterError(
                f"a server did not come up within serving.startup_timeout_s = {self.serving.startup_timeout_s:g} s;"
                f" the end of {late.log}:\n{log_tail(late.log)}"
            )
        return None

    def end(self) -> None:
        """End the servers after a run that went well: nobody needs their logs."""
        _end(self.servers)
        for log in self.logs:
            log.unlink(missing_ok=True)


@contextlib.contextmanager
def fleet(stage: str, model: GenerationModel, serving: Serving, keep: bool) -> Iterator[Fleet]:
    """Servers for the model, ended whatever happens; with `keep`, jobs may wait for the next stage to adopt them."""
    if isinstance(serving, ExternalServing):
        yield ExternalFleet(serving)
    elif isinstance(serving, LocalServing):
        yield from _local(stage, model, serving)
    else:
        from cosmopedia.execution.slurm.fleet import SlurmFleet

        with SlurmFleet(stage, model, serving) as servers:
            yield servers
            if not keep:
                servers.end()


_waiting: list[LocalFleet] | None = None  # within `local_servers_wait`: those that are up and not in use


@contextlib.contextmanager
def local_servers_wait() -> Iterator[None]:
    """A local server that a run started within the block serves the next run as well, and ends with the block.

    For a stage that asks again after it has read the answers: a server takes seconds to load its model.
    """
    global _waiting
    _waiting = []
    try:
        yield
    finally:
        waiting, _waiting = _waiting, None
        for local in waiting:
            local.end()


def _local(stage: str, model: GenerationModel, serving: LocalServing) -> Iterator[Fleet]:
    arguments = ["--model", str(model.folder), "--model-id", model.model, "--revision", model.revision, "--port", "0"]
    arguments += ["--batch-size", str(serving.batch_size), "--max-concurrent", str(serving.concurrency)]
    local = next((one for one in _waiting or [] if (one.arguments, one.serving) == (arguments, serving)), None)
    if local is None:
        local = LocalFleet(stage, arguments, serving)
    elif _waiting:
        _waiting.remove(local)
    try:
        yield local
    except BaseException:
        _end(local.servers)
        raise
    if _waiting is None:
        local.end()
    else:
        _waiting.append(local)


def release(stage: str, model: GenerationModel, serving: Serving) -> None:
    """End the servers that an earlier stage kept for this one, which needs none."""
    if isinstance(serving, SlurmServing):
        from cosmopedia.execution.slurm.fleet import SlurmFleet, end_fleet, known_fleets

        name = SlurmFleet(stage, model, serving).name
        jobs = end_fleet(name) if name in known_fleets() else []
        if jobs:
            print(f"{stage}: {len(jobs)} idle server job(s) ended", flush=True)


def _end(servers: list[Server]) -> None:
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGTERM)
    for server in servers:
        server.end()

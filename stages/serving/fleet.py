"""Servers for one run: our CPU server as local processes, or the external endpoints of the cluster file.

In: the model folder and the cluster file. Out: URLs of healthy servers. Ours are ended whatever happens, also when the
driver is killed with SIGKILL (PR_SET_PDEATHSIG on Linux). Their logs lie in `<store root>/logs`; a run that ends well
removes them.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from stages.clusters import Serving
from stages.errors import ClusterError, ConfigError
from stages.lineage import store_root
from stages.serving.client import wait_healthy

CPU_SERVER = (sys.executable, "-m", "stages.serving.cpu_server")
STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL
TAIL_LINES = 15

# Runs before the server: dies with the driver (1 = PR_SET_PDEATHSIG), also if that was killed in the meantime.
_LEASH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Server:
    """One local server process, in a session of its own so that Ctrl-C reaches the driver alone."""

    def __init__(self, command: list[str], name: str):
        folder = store_root() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{name}.log"
        self.registration = folder / f"{name}.json"
        self.registration.unlink(missing_ok=True)
        leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*leash, *command, "--registration", str(self.registration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def url(self) -> str | None:
        """Its address, once it has registered."""
        try:
            return json.loads(self.registration.read_text())["url"].rstrip("/")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError):
            raise ClusterError(f"{self.registration} is no registration of a server; see {self.log}") from None

    def death(self) -> str | None:
        """A sentence with the end of its log if it has died."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return f"the server ended {how}; the end of {self.log}:\n{tail(self.log)}"

    def end(self) -> None:
        """SIGTERM, then SIGKILL, to the server and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
                break
        self.registration.unlink(missing_ok=True)


class Fleet:
    """Healthy servers: `urls`, and `lost()`, a sentence when none of ours is left."""

    def __init__(self, urls: list[str], servers: list[Server]):
        self.urls, self._servers = urls, servers

    def lost(self) -> str | None:
        deaths = [server.death() for server in self._servers]
        return next((d for d in deaths if d), None) if deaths and all(deaths) else None


@contextlib.contextmanager
def fleet(stage: str, folder: Path, model: str, revision: str, serving: Serving) -> Iterator[Fleet]:
    """Healthy servers for the model in `folder`. `ClusterError` when one does not come up in `startup_timeout_s`."""
    if serving.engine == "external":
        urls = [url.rstrip("/") for url in serving.endpoints]
        if not urls:
            raise ConfigError("serving.engine is external, but serving.endpoints is empty; name a server's base URL")
        asyncio.run(wait_healthy(urls, serving.startup_timeout_s))
        yield Fleet(urls, [])
        return
    servers: list[Server] = []
    try:
        arguments = ["--model", str(folder), "--model-id", model, "--revision", revision, "--port", "0"]
        arguments += ["--batch-size", str(serving.batch_size), "--max-concurrent", str(serving.concurrency)]
        for number in range(serving.instances):
            servers.append(Server([*CPU_SERVER, *arguments], f"{stage}-{os.getpid()}-{number}"))
        urls = _registered(servers, serving.startup_timeout_s)
        asyncio.run(wait_healthy(urls, serving.startup_timeout_s, lambda: _first_death(servers)))
        yield Fleet(urls, servers)
    except BaseException:
        _end(servers)
        raise
    _end(servers)
    for server in servers:
        server.log.unlink(missing_ok=True)


def _registered(servers: list[Server], timeout_s: float) -> list[str]:
    end = time.monotonic() + timeout_s
    while True:
        if sentence := _first_death(servers):
            raise ClusterError(sentence)
        urls = [server.url() for server in servers]
        if all(urls):
            return [url for url in urls if url]
        if time.monotonic() > end:
            late = servers[urls.index(None)]
            raise ClusterError(
                f"a server did not come up within serving.startup_timeout_s = {timeout_s:g} s;"
                f" the end of {late.log}:\n{tail(late.log)}"
            )
        time.sleep(0.05)


def _first_death(servers: list[Server]) -> str | None:
    return next((sentence for server in servers if (sentence := server.death())), None)


def _end(servers: list[Server]) -> None:
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGTERM)
    for server in servers:
        server.end()


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (empty)"

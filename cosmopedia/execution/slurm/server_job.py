"""The process that a server's job runs: it starts the engine, registers its address, and ends it when it is idle.

In: a fleet's folder on a file system that all nodes share. Out: `<fleet>/servers/<job>.<restart>.json` with the
address, while the engine is healthy. It ends the engine when the job is cancelled, and when no driver has touched
`<fleet>/drivers/*` for `--idle` seconds: a fleet whose driver was killed ends by itself.
Run: by the job script of compute/templates/server.sh.j2.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cosmopedia.core.files import write_text

LOOK_SECONDS = 1.0
HEALTH_SECONDS = 15.0  # between two health checks of a server that is in use
UNHEALTHY_SECONDS = 180.0  # without an answer: the job fails, and is replaced
PROBE_SECONDS = 5.0
ANY_PORT = (0,) * 20  # the kernel chooses; 20 tries, in case another supervisor has claimed its choice
STOP_SECONDS = 20.0  # between SIGTERM and SIGKILL of the engine; Slurm's own KillWait is 30 s


class Supervisor:
    """One engine on this node."""

    def __init__(self, fleet: Path, startup_s: float, idle_s: float, command: list[str], ports: Sequence[int]):
        self.ports = ports
        self.fleet, self.startup_s, self.idle_s, self.command = fleet, startup_s, idle_s, command
        self.job = os.environ.get("SLURM_JOB_ID", f"local-{os.getpid()}")
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.file = fleet / "servers" / f"{self.job}.{self.restart}.json"
        self.host = os.environ.get("COSMO_NODE_ADDRESS") or socket.gethostname()
        self.key = (fleet / "key").read_text(encoding="utf-8").strip()
        self.stopping = False

    def run(self) -> int:
        """The job's exit status: 0 when it was told to end, 1 when the engine ended or never became healthy."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        claims = [claim(self.ports), claim(ANY_PORT), claim(ANY_PORT)]
        claimed = [claim[0] for claim in claims if claim]
        if len(claimed) < len(claims):
            problem = f"none of the ports {self.ports[0]} to {self.ports[-1]} is free on {socket.gethostname()}"
            print(f"supervisor: {problem}; widen serving.ports in the compute file", file=sys.stderr, flush=True)
            return 1
        port, *others = map(str, claimed)
        variables = {**os.environ, "PORT": port, "COSMO_SERVING_KEY": self.key}
        variables |= {"COSMO_SECOND_PORT": others[0], "COSMO_THIRD_PORT": others[1]}  # for an engine's own processes
        engine = subprocess.Popen(self.command, env=variables, start_new_session=True)
        try:
            return self._watch(engine, f"http://{self.host}:{port}")
        finally:
            self.file.unlink(missing_ok=True)
            _end(engine)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _watch(self, engine: "subprocess.Popen[bytes]", url: str) -> int:
        began = time.monotonic()
        registered = False
        healthy = 0.0
        while not self.stopping:
            status = engine.poll()
            if status is not None:
                print(f"supervisor: the engine ended with status {status}", file=sys.stderr, flush=True)
                return 1
            if (not registered or time.monotonic() - healthy > HEALTH_SECONDS) and self._healthy(url):
                healthy = time.monotonic()
                if not registered:
                    self._register(url)
                registered = True
            if registered and time.monotonic() - healthy > UNHEALTHY_SECONDS:
                print(f"supervisor: no answer to /health for {UNHEALTHY_SECONDS:g} s", file=sys.stderr, flush=True)
                return 1
            if not registered and time.monotonic() - began > self.startup_s:
                print(f"supervisor: not healthy within {self.startup_s:g} s", file=sys.stderr, flush=True)
                return 1
            if self._abandoned(began):
                print(f"supervisor: no driver for {self.idle_s:g} s; ending", file=sys.stderr, flush=True)
                return 0
            time.sleep(LOOK_SECONDS)
        return 0

    def _healthy(self, url: str) -> bool:
        request = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {self.key}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PROBE_SECONDS) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def _register(self, url: str) -> None:
        address = {"url": url, "job": self.job, "restart": self.restart, "host": self.host, "pid": os.getpid()}
        write_text(self.file, json.dumps(address) + "\n")
        print(f"supervisor: {url} is healthy", file=sys.stderr, flush=True)

    def _abandoned(self, began: float) -> bool:
        """Whether no driver has touched its file for `idle_s`, by the file system's own clock."""
        probe = self.fleet / f".clock-{self.job}"
        with contextlib.suppress(OSError):
            probe.touch()
            now = probe.stat().st_mtime
            seen = [path.stat().st_mtime for path in (self.fleet / "drivers").glob("*")]
            probe.unlink(missing_ok=True)
            return now - max(seen, default=0.0) > self.idle_s and time.monotonic() - began > min(self.idle_s, 30.0)
        return False  # a file system that does not respond says nothing about drivers


def claim(ports: Sequence[int]) -> tuple[int, socket.socket] | None:
    """(a port that is free on this node, what reserves it); None when all are taken.

    An engine binds its port only once its weights are loaded, minutes later. Until then the returned socket, an
    abstract one that the kernel frees with this process, keeps the node's other supervisors from taking the same port.
    """
    for wanted in ports:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port outlives its server
            try:
                attempt.bind(("", wanted))
            except OSError:
                continue
            port = attempt.getsockname()[1]
        keeper = socket.socket(socket.AF_UNIX)
        try:
            keeper.bind(f"\0cosmo-port-{port}")
        except OSError:
            keeper.close()
            continue
        return port, keeper
    return None


def _end(engine: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, then SIGKILL, to the engine's whole session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(STOP_SECONDS)
            break


def main() -> int:
    """Parse the command line and supervise."""
    parser = argparse.ArgumentParser(
        prog="cosmopedia.execution.slurm.server_job", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--fleet", type=Path, required=True, help="the fleet's folder")
    parser.add_argument("--startup", type=float, required=True, help="seconds until the engine must be healthy")
    parser.add_argument("--idle", type=float, required=True, help="seconds without a driver after which it ends")
    parser.add_argument("--ports", type=int, nargs=2, help="first and last port that it may take")
    parser.add_argument("command", nargs="+", help="what starts the engine")
    options = parser.parse_args()
    ports = range(options.ports[0], options.ports[1] + 1) if options.ports else ANY_PORT
    return Supervisor(options.fleet, options.startup, options.idle, options.command, ports).run()


if __name__ == "__main__":
    sys.exit(main())

"""The process that a server's job runs: it starts the engine, says where it is, and ends it when nobody wants it.

In: a fleet's folder on a file system that all nodes share. Out: `<fleet>/servers/<job>.<restart>.json` with the
address, while the engine is healthy. It ends the engine when the job is cancelled, and when no driver has shown a sign
of life (`<fleet>/drivers/*`) for `--idle` seconds: a fleet whose driver was killed ends by itself.
Alone: the job script of clusters/templates/server.sh.j2 runs it.
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
from pathlib import Path

LOOK_SECONDS = 1.0
HEALTH_SECONDS = 15.0  # between two looks at a server that is in use
UNHEALTHY_SECONDS = 180.0  # without an answer: the job fails, and is replaced
PROBE_SECONDS = 5.0
STOP_SECONDS = 20.0  # between SIGTERM and SIGKILL of the engine; Slurm's own KillWait is 30 s


class Supervisor:
    """One engine on this node."""

    def __init__(self, fleet: Path, startup_s: float, idle_s: float, command: list[str]):
        self.fleet, self.startup_s, self.idle_s, self.command = fleet, startup_s, idle_s, command
        self.job = os.environ.get("SLURM_JOB_ID", f"local-{os.getpid()}")
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.file = fleet / "servers" / f"{self.job}.{self.restart}.json"
        self.host = os.environ.get("COSMO_NODE_ADDRESS") or socket.gethostname()
        self.key = (fleet / "key").read_text(encoding="utf-8").strip()
        self.asked_to_stop = False

    def run(self) -> int:
        """The job's exit status: 0 when it was asked to end, 1 when the engine ended or never became healthy."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        port = _free_port()
        variables = {**os.environ, "PORT": str(port), "COSMO_SERVING_KEY": self.key}
        engine = subprocess.Popen(self.command, env=variables, start_new_session=True)
        try:
            return self._watch(engine, f"http://{self.host}:{port}")
        finally:
            self.file.unlink(missing_ok=True)
            _end(engine)

    def _stop(self, *_: object) -> None:
        self.asked_to_stop = True

    def _watch(self, engine: "subprocess.Popen[bytes]", url: str) -> int:
        began, registered, healthy = time.monotonic(), False, 0.0
        while not self.asked_to_stop:
            if (status := engine.poll()) is not None:
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
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=PROBE_SECONDS
            ) as a:
                return a.status == 200
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def _register(self, url: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".draft")
        found = {"url": url, "job": self.job, "restart": self.restart, "host": self.host, "pid": os.getpid()}
        draft.write_text(json.dumps(found) + "\n", encoding="utf-8")
        draft.replace(self.file)
        print(f"supervisor: {url} is healthy", file=sys.stderr, flush=True)

    def _abandoned(self, began: float) -> bool:
        """Whether no driver has touched its file for `idle_s`, on the file system's own clock."""
        probe = self.fleet / f".clock-{self.job}"
        with contextlib.suppress(OSError):
            probe.touch()
            now = probe.stat().st_mtime
            seen = [path.stat().st_mtime for path in (self.fleet / "drivers").glob("*")]
            probe.unlink(missing_ok=True)
            return now - max(seen, default=0.0) > self.idle_s and time.monotonic() - began > min(self.idle_s, 30.0)
        return False  # a file system that does not answer says nothing about drivers


def _free_port() -> int:
    """A port that nobody has now; should the engine lose it on a busy node, the job fails and is replaced."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


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
    parser = argparse.ArgumentParser(prog="stages.launch.supervisor", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--fleet", type=Path, required=True, help="the fleet's folder")
    parser.add_argument("--startup", type=float, required=True, help="seconds until the engine must be healthy")
    parser.add_argument("--idle", type=float, required=True, help="seconds without a driver after which it ends")
    parser.add_argument("command", nargs="+", help="what starts the engine")
    options = parser.parse_args()
    return Supervisor(options.fleet, options.startup, options.idle, options.command).run()


if __name__ == "__main__":
    sys.exit(main())

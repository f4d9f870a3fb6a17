"""A real Slurm on one machine for the tests: a controller and several nodes from Debian's packages (install_slurm.sh).

`SlurmCluster(folder)` keeps its configuration, key, sockets, state and logs in `folder`, listens on 127.0.0.1 only,
and leaves no process behind, even after a failing test or a pytest that was killed with SIGKILL. Jobs are submitted
with the ordinary commands (sbatch, squeue, scancel, scontrol, `sacct -c`) under `SlurmCluster.environment`. It runs as
the user who runs the tests. The scheduler counts CPUs, memory and GPUs, but nothing limits a job to what it requested.

Why the settings in `CONFIGURATION` are as they are (Slurm 22.05):

SlurmctldHost=HOST(127.0.0.1)   the controller refuses to start unless HOST is this machine's own name
CommunicationParameters         without both, the daemons listen on all addresses
%n in paths, a port per node    all nodes share this machine: each needs its own spool, pid file, log and port
AuthInfo cred_expire            a requeued job waits until its old credential expires: 120 s by default; 5 s at least
ProctrackType, TaskPlugin       the defaults need cgroups, which a container does not have
SlurmdParameters                lets a node have more CPUs and memory than this machine
SlurmdTimeout                   after so long without contact a node is down, and its jobs are requeued
MessageTimeout                  refused connections are retried for so long; the default adds 10 s until a node is down
ReturnToService=2               a node that was down is used again as soon as it registers
JobCompType=jobcomp/filetxt     what `sacct -c` reads; plain `sacct` would need a database
SchedulerParameters             looks at the queue every second instead of every minute
MinJobAge                       for so many seconds after its end, `scontrol show job` knows a job
PreemptType, PreemptMode        a job in the partition `urgent` requeues jobs of `all` whose nodes it needs
KillWait                        seconds between SIGTERM and SIGKILL for a job that is cancelled or out of time
GRES                            slurmd needs a character device per GPU: links to /dev/null work, bare counts do not
"""

import contextlib
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

START_SECONDS = 180.0
COMMAND_SECONDS = 120.0
LOG_LINES = 15
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # where the daemons are; not on every user's PATH
PORTS = range(10_000, 32_000)  # below the ports that Linux gives to outgoing connections

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout={silence}
MessageTimeout=3
InactiveLimit=0
KillWait=2
MinJobAge=10
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
AccountingStorageType=accounting_storage/none
GresTypes=gpu
"""

# The process above each daemon. It ends the daemon and all its descendants on SIGTERM and when pytest has died. A
# job's processes leave the daemon's group and survive it; but orphans go to the nearest subreaper, so that everything
# below the keeper is the daemon's, and nothing has to be searched for.
KEEPER = """\
import contextlib, ctypes, os, signal, subprocess, sys, time
from pathlib import Path


def children():
    by_parent = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # "pid (name) state parent ...", and a name may contain anything
                parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                by_parent.setdefault(int(parent), []).append(int(folder.name))
    return by_parent


def kill_all():
    while True:
        by_parent, row = children(), [os.getpid()]
        while row:  # parents first: a slurmstepd that saw its script die would still report that the job failed
            row = [child for parent in row for child in by_parent.get(parent, [])]
            for pid in row:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def end(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


signal.signal(signal.SIGTERM, end)
prctl = ctypes.CDLL(None).prctl
prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
try:
    if os.getppid() != int(sys.argv[1]):
        raise SystemExit(1)
    daemon = subprocess.Popen(sys.argv[2:])
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == daemon.pid:
            raise SystemExit(1)
finally:
    kill_all()
"""


class Job(NamedTuple):
    """A line of squeue. A pending job has no node, and a reason such as `Resources` or `BeginTime`."""

    id: str  # of an array's task: `12_3`
    name: str
    state: str
    node: str
    reason: str


def missing() -> str:
    """Why Slurm cannot run here; empty if it can."""
    if sys.platform != "linux":
        return "Slurm's nodes need Linux"
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not _program(name)]
    return f"{', '.join(absent)} not found; tests/support/install_slurm.sh installs Debian's Slurm" if absent else ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"fewer than {count} free ports from {PORTS.start} to {PORTS.stop - 1}")


class SlurmCluster:
    """A controller and `nodes` nodes named n1, n2, ... with `cpus` CPUs, 1 TB and `gpus` fake GPUs each.

    Partitions: `all` (the default) and `urgent`. `folder` need not exist; keep its path short, since a socket's path
    has at most 107 characters. A node that was silent for `silence` seconds is down. RuntimeError with the ends of the
    logs when something does not start. Enter it in the main thread: the daemons end with the thread that started them.
    """

    def __init__(self, folder: Path, nodes: int = 3, cpus: int = 2, gpus: int = 0, silence: int = 5):
        self.folder = folder.resolve()
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "keeper.py").write_text(KEEPER)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)  # munged refuses a key that others can read
        key.write_bytes(os.urandom(128))
        self._configure(cpus, gpus, silence)

    def _configure(self, cpus: int, gpus: int, silence: int) -> None:
        host = socket.gethostname().partition(".")[0]
        controller, *ports = _free_ports(1 + len(self.nodes))
        user = pwd.getpwuid(os.getuid()).pw_name
        text = CONFIGURATION.format(host=host, port=controller, user=user, folder=self.folder, silence=silence)
        size = f"CPUs={cpus} RealMemory=1000000" + (f" Gres=gpu:{gpus}" if gpus else "")
        for name, port in zip(self.nodes, ports, strict=True):
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {size}\n"
        for partition, tier, default in (("all", 1, "YES"), ("urgent", 2, "NO")):
            text += f"PartitionName={partition} Nodes={','.join(self.nodes)} PriorityTier={tier} Default={default}\n"
        (self.folder / "slurm.conf").write_text(text)
        devices = [self.folder / f"nvidia{number}" for number in range(gpus)]
        for device in devices:
            device.symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))

    def __enter__(self) -> Self:
        try:
            # --force: munged expects a folder that all can enter, but pytest's folders are private
            files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            munge = self.folder / "munge.socket"
            self._start("munged", "munged", "--foreground", "--force", f"--socket={munge}", *files)
            self._wait(munge.exists, START_SECONDS, "munged opened no socket")
            self._start("slurmctld", "slurmctld", "-D", "-i", "-f", self.environment["SLURM_CONF"])
            for name in self.nodes:
                self._start_node(name)
            self.wait_idle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all of its processes, including those of its jobs."""
        self._end(list(self._keepers))

    def run(self, *command: str, stdin: str | None = None) -> str:
        """What one of Slurm's commands prints. RuntimeError with its message when it fails."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def jobs(self) -> list[Job]:
        """The jobs that are waiting, running or ending; an array's tasks one by one."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i|%j|%T|%N|%r").splitlines()
        return [Job(*(field.strip() for field in line.split("|"))) for line in lines]

    def wait_empty(self, seconds: float) -> None:
        """Wait until no job is left in the queue."""
        self._wait(lambda: not self.jobs(), seconds, "jobs are left in the queue")

    def wait_idle(self, seconds: float = START_SECONDS) -> None:
        """Wait until all nodes are up and free of jobs."""

        def idle() -> bool:
            with contextlib.suppress(RuntimeError):  # the controller does not answer yet
                shown = self.run("sinfo", "--noheader", "--Node", "--partition=all", "--format=%N %T").split("\n")
                return sorted(filter(None, shown)) == sorted(f"{name} idle" for name in self.nodes)
            return False

        self._wait(idle, seconds, "not all nodes are idle")

    def kill_node(self, number: int) -> None:
        """Node `number` (from 1) goes as if it lost power: its slurmd and all of its jobs, with SIGKILL.

        Slurm notices by itself, at most 7 s after `silence`, and starts the requeued jobs elsewhere 6 s later. To skip
        the first wait: `run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=dead")`.
        """
        self._end([self.nodes[number - 1]])

    def restart_node(self, number: int) -> None:
        """Node `number` (from 1) starts again; `wait_idle` waits until it has. If it still runs, its jobs end."""
        name = self.nodes[number - 1]
        self._end([name] if name in self._keepers else [])
        self._start_node(name)

    def logs(self) -> str:
        """The ends of all logs, for an error's text."""
        tails = []
        for out in sorted(self.folder.glob("*.out")):
            log = out.with_suffix(".log")
            path = log if log.exists() else out
            if lines := path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                tails.append("\n    ".join([path.name, *lines]))
        return "\n".join(tails)

    def _start_node(self, name: str) -> None:
        self._start(name, "slurmd", "-D", "-N", name, "-f", self.environment["SLURM_CONF"])

    def _start(self, name: str, program: str, *arguments: str) -> None:
        path = _program(program)
        if not path:
            raise RuntimeError(missing())
        keeper = [sys.executable, "-I", "-S", str(self.folder / "keeper.py"), str(os.getpid())]
        # Its log has most; this has the rest, such as complaints about a configuration that it cannot read.
        with (self.folder / f"{name}.out").open("wb") as out:
            self._keepers[name] = subprocess.Popen(
                [*keeper, path, *arguments],
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C goes to pytest, which then ends the cluster in order
            )

    def _end(self, names: list[str]) -> None:
        ended = [self._keepers.pop(name) for name in names]
        for keeper in ended:
            keeper.terminate()
        for keeper in ended:
            keeper.wait()

    def _wait(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            dead = [name for name, keeper in self._keepers.items() if keeper.poll() is not None]
            if dead or time.monotonic() > end:
                why = f"{', '.join(dead)} has ended" if dead else f"after {seconds:g} s"
                raise RuntimeError(f"Slurm: {otherwise} ({why})\n{self.logs()}")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Three nodes with two CPUs and two fake GPUs each for a module's tests; Slurm's commands reach them."""
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), gpus=2) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster

"""kill -9 at many moments of the whole pipeline, at a reduced size, and the hashes that come out.

Run: python -m tests.repository.chaos [--seed 1] [--folder DIR] [--only generate train dvc.lock]

Two checkouts: in one the pipeline runs undisturbed, in the other it is killed some forty times and started again, as
`make repro` starts it (`cosmo check && dvc repro -P`). A kill hits DVC alone or everything that DVC has started; some
hit DVC while it writes dvc.lock. In the end every out's hash in dvc.lock must be the same, no draft, process or lock
may be left over, no completion may be twice in the store, and `dvc status` must find nothing to do.
Takes eleven minutes on two cores, so it is no part of `make test`.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import yaml

from cosmopedia.execution.lock_repair import RWLOCK
from cosmopedia.store.folder import files_in, keys_in, split_keys
from tests.repository.test_pipeline import ROOT, checkout, environment

# each stage once, and more often those that work for long, and DVC while it writes dvc.lock
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
OFTEN = {"generator": 2, "cluster": 2, "generate": 4, "train": 4, "evaluate": 3, "dvc.lock": 4}
KILLS = dict.fromkeys(STAGES, 1) | OFTEN

RUN = f"{sys.executable} -m cosmopedia.cli check && dvc repro -P"


def start(folder: Path, store: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            ["bash", "-c", RUN],
            cwd=folder,
            env=environment(store),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stage_of(process: psutil.Process) -> str | None:
    """The stage that a run works on."""
    try:
        for child in process.children(recursive=True):
            words = child.cmdline()
            if "-m" in words and words[words.index("-m") + 1].startswith("stages."):
                return words[words.index("-m") + 1].split(".")[1]
    except (psutil.Error, ValueError, IndexError):
        pass
    return None


def kill(process: subprocess.Popen[bytes], alone: bool) -> None:
    """SIGKILL for DVC alone, or for everything that the run has started."""
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if not alone or any(word.endswith("/dvc") for word in one.cmdline()[:2]):
                    one.kill()
    process.kill()
    process.wait()


def moment_of_a_kill(
    process: subprocess.Popen[bytes], left: Counter[str], lock: Path, seconds: dict[str, float], draw: random.Random
) -> str | None:
    """Wait for a stage that is still to be killed, and for a while longer; what is hit, None when the run has ended.

    "dvc.lock" is the moment at which DVC has emptied it and not yet written it.
    """
    watched = psutil.Process(process.pid)
    in_lock, size = left["dvc.lock"] > 0 and draw.random() < 0.25, 0
    while process.poll() is None:
        now = lock.stat().st_size if lock.is_file() else 0
        if in_lock and now < size:
            return "dvc.lock"
        size = now
        if not in_lock and left[stage := stage_of(watched) or ""] > 0:
            time.sleep(0.6 * draw.random() * seconds.get(stage, 1.0))
            hit = stage_of(watched) or "between stages"
            left[hit] -= 1  # a stage that has ended meanwhile is hit another time, if it runs again
            return hit
        time.sleep(0.0002 if in_lock else 0.02)
    return None


def hashes(folder: Path) -> dict[str, str]:
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    outs = (out for stage in lock["stages"].values() for out in stage["outs"])
    return {out["path"]: out["md5"] for out in outs}


def undisturbed(folder: Path, store: Path, log: Path) -> dict[str, float]:
    """Run to the end; the seconds of each stage."""
    process, seconds = start(folder, store, log), defaultdict[str, float](float)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        before = time.monotonic()
        time.sleep(0.05)
        if stage := stage_of(watched):
            seconds[stage] += time.monotonic() - before
    if process.returncode:
        sys.exit(f"the undisturbed run failed:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
    return dict(seconds)


def disturbed(
    folder: Path, store: Path, log: Path, seconds: dict[str, float], left: Counter[str], draw: random.Random
) -> Counter[str]:
    """Run with the kills that are left until a run ends; what was hit, and how often."""
    hits, lock = Counter[str](), folder / "dvc.lock"
    while True:
        process = start(folder, store, log)
        moment = moment_of_a_kill(process, left, lock, seconds, draw)
        if moment is None:
            if process.wait():
                sys.exit(f"a run failed:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
            return hits
        kill(process, alone=draw.random() < 0.5)
        hits[moment] += 1
        left["dvc.lock"] -= moment == "dvc.lock"
        size = lock.stat().st_size if lock.is_file() else 0
        print(f"kill {hits.total()}: {moment}; dvc.lock has {size} bytes", flush=True)


def orphans(folder: Path) -> list[str]:
    """Processes that still work in a checkout; a stage whose DVC was killed has ten seconds to notice."""
    for _ in range(100):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(folder.resolve()):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
        if not found:
            break
        time.sleep(0.1)
    return found


def left_over(folder: Path, store: Path) -> list[str]:
    """What a killed run must not leave in a checkout and its store that has run to the end since."""
    found = [str(path) for path in folder.rglob("*.partial")] + orphans(folder)
    # DVC forgets a dead reader when somebody wants to write: of files that nobody writes, code and samples, some stay
    outs = {str(folder.resolve() / out) for out in hashes(folder)}
    locks = json.loads((folder / RWLOCK).read_text(encoding="utf-8"))
    found += [f"{RWLOCK}: {kind} {path}" for kind, paths in locks.items() for path in outs.intersection(paths)]
    keys = Counter(
        key for file in files_in(store / "completions") for several in keys_in(file) for key in split_keys(several)
    )
    found += [f"{key.hex()}: {count} times in the store" for key, count in keys.items() if count > 1]
    status = subprocess.run(
        ["dvc", "status"], cwd=folder, env=environment(store), capture_output=True, text=True, check=False
    )
    if "up to date" not in status.stdout:
        found.append(f"dvc status: {status.stdout}{status.stderr}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=KILLS, default=list(KILLS), help="stages to kill, or dvc.lock")
    arguments = parser.parse_args()
    base = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    log = base / "log"
    quiet, killed = checkout(base / "quiet"), checkout(base / "killed")
    seconds = undisturbed(quiet, base / "quiet-store", log)
    print("seconds per stage:", {name: round(value, 1) for name, value in seconds.items()}, flush=True)
    kills = Counter({name: KILLS[name] for name in arguments.only})
    hit = disturbed(killed, base / "killed-store", log, seconds, kills, random.Random(arguments.seed))
    expected, found = hashes(quiet), hashes(killed)
    different = sorted(path for path in expected if expected[path] != found.get(path))
    remains = left_over(killed, base / "killed-store")
    print(f"differ: {different}; left over: {remains}")
    print(f"summary: {hit.total()} kills ({dict(hit)}), {len(expected)} outs, {len(different)} with other bytes")
    sys.exit(bool(different or remains or expected.keys() != found.keys()))


if __name__ == "__main__":
    main()

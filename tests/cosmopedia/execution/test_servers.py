"""Local servers: whose runs they serve, and when they end."""

import sys
import time
from pathlib import Path

import pytest

from cosmopedia.execution import servers
from cosmopedia.execution.compute import load_compute
from cosmopedia.execution.servers import LocalFleet, fleet, local_servers_wait
from cosmopedia.generation.model import GenerationModel

ROOT = Path(__file__).parents[3]
MODEL = GenerationModel(Path("models/generator"), "m", "r1", None, 512, "models/generator", None)


def up(one: servers.Fleet) -> int:
    """The process id of the only server, once it is up."""
    assert isinstance(one, LocalFleet)
    end = time.monotonic() + 30
    while not one.members():
        assert time.monotonic() < end, "it does not come up"
        assert one.tend() is None
        time.sleep(0.02)
    return one.servers[0].process.pid


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_server_waits_for_the_next_run_of_its_stage_where_that_is_wanted(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "CPU_SERVER", (sys.executable, str(ROOT / "tests/support/fake_tgi.py")))
    monkeypatch.setenv("COSMO_COMPUTE", str(ROOT / "compute/local.yaml"))
    serving = load_compute().serving
    with fleet("label", MODEL, serving, keep=True) as one:
        alone = up(one)
    assert not is_running(alone)
    with local_servers_wait():
        with fleet("label", MODEL, serving, keep=True) as one:
            first = up(one)
        assert is_running(first)
        with fleet("label", MODEL, serving, keep=True) as one:
            assert up(one) == first
        with pytest.raises(KeyboardInterrupt), fleet("label", MODEL, serving, keep=True) as one:
            raise KeyboardInterrupt
        assert not is_running(first)  # a run that fails ends them, and keeps the log
        assert len(list(Path(".store/logs").glob("*.log"))) == 1
        with fleet("label", MODEL, serving, keep=True) as one:
            second = up(one)
    assert not is_running(second) and second != first

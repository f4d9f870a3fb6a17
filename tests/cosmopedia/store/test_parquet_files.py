"""Compaction, damage of any kind, and millions of keys: the store keeps what it was given, in little memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmopedia.core.errors import DataError
from cosmopedia.store import parquet_files
from cosmopedia.store.folder import files_in
from cosmopedia.store.maintenance import compact, repair, verify
from cosmopedia.store.segments import SegmentWriter
from cosmopedia.store.store import CompletionStore
from tests.support.completions import completion, run_python


def fill(folder: Path, *ranges: range) -> None:
    """One segment per range."""
    for numbers in ranges:
        with CompletionStore(folder) as store:
            store.append([completion(n) for n in numbers])


def settle(folder: Path, **options: object) -> int:
    """Compact and remove what was replaced; completions left out."""
    done = compact(folder, **options)  # type: ignore[arg-type]
    for path in done.old:
        path.unlink()
    return done.left_out


def test_compaction_keeps_each_completion_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "GROUP_ROWS", 16)
    monkeypatch.setattr(parquet_files, "FILE_ROWS", 100)
    fill(tmp_path, range(150), range(100, 220))
    assert settle(tmp_path) == 50
    assert {path.suffix for path in files_in(tmp_path)} == {".parquet"} and len(files_in(tmp_path)) == 2
    store = CompletionStore(tmp_path)
    assert [store.get(completion(n).key) for n in range(220)] == [completion(n) for n in range(220)]
    assert completion(220).key not in store and verify(tmp_path) == []
    assert (store.contents().completions, store.contents().tokens) == (220, 220 * 20)
    fill(tmp_path, range(210, 230))  # 210 to 219 again: a second writer that did not know
    assert settle(tmp_path) == 10
    store = CompletionStore(tmp_path)
    assert all(store.get(completion(n).key) == completion(n) for n in range(230))
    assert store.contents().completions == 230


def test_a_segment_that_is_still_written_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, range(10))
    with CompletionStore(tmp_path) as store:
        store.append([completion(n) for n in range(10, 20)])
        done = compact(tmp_path)
        assert (len(done.old), done.in_use, done.kept) == (1, 1, 10)
        store.append([completion(20)])
        assert [store.get(completion(n).key) for n in range(21)] == [completion(n) for n in range(21)]


def test_a_reader_goes_on_when_its_segments_are_compacted(tmp_path: Path) -> None:
    fill(tmp_path, range(100))
    reader = CompletionStore(tmp_path)
    with CompletionStore(tmp_path) as writer:
        writer.append([completion(n) for n in range(100, 110)])
        settle(tmp_path)
        assert [reader.get(completion(n).key) for n in range(100)] == [completion(n) for n in range(100)]
        assert writer.get(completion(3).key) == completion(3)
        writer.append([completion(110)])  # its own segment is found again after the files were read anew
        assert [writer.get(completion(n).key) for n in range(100, 111)] == [completion(n) for n in range(100, 111)]


def test_what_nothing_wants_is_left_out_of_parquet_files_too(tmp_path: Path) -> None:
    fill(tmp_path, range(50))
    settle(tmp_path)
    fill(tmp_path, range(50, 60))
    kept = {bytes.fromhex(completion(n).key) for n in range(0, 60, 2)}
    assert settle(tmp_path, wanted=lambda key: key in kept) == 30
    store = CompletionStore(tmp_path)
    assert [n for n in range(60) if completion(n).key in store] == list(range(0, 60, 2))


KILLED = """
import os, signal, sys
from pathlib import Path
from cosmopedia.store import parquet_files
from cosmopedia.store.maintenance import compact
parquet_files.GROUP_ROWS, parquet_files.FILE_ROWS = 16, 64
groups = 0
def dying(rows, table_of=parquet_files._table_of):
    global groups
    groups += 1
    if groups == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return table_of(rows)
parquet_files._table_of = dying
for path in compact(Path(sys.argv[1])).old:
    path.unlink()
"""


@pytest.mark.slow
def test_compaction_killed_anywhere_loses_nothing(tmp_path: Path) -> None:
    fill(tmp_path, range(200))
    for when in (1, 5, 10, 10**6):
        run_python(KILLED, tmp_path, when).wait()
        store = CompletionStore(tmp_path)
        assert all(store.get(completion(n).key) == completion(n) for n in range(200))
        assert store.contents().completions == 200
    assert {path.suffix for path in files_in(tmp_path)} == {".parquet"}


@pytest.mark.slow
def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path, range(300))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    code = "import sys\nfrom pathlib import Path\nfrom cosmopedia.store.maintenance import compact\n"
    code += "compact(Path(sys.argv[1]))"
    process = run_python(limit + code, tmp_path)
    assert "make room and run it again" in process.communicate()[1]
    assert all(CompletionStore(tmp_path).get(completion(n).key) == completion(n) for n in range(300))
    assert files_in(tmp_path) == list(tmp_path.glob("*.seg"))


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a segment and of a parquet file with the same 40 completions in several frames."""
    folder = tmp_path_factory.mktemp("whole")
    with CompletionStore(folder) as store:
        for first in range(0, 40, 8):
            store.append([completion(n, words=n % 7) for n in range(first, first + 8)])
    (segment,) = files_in(folder)
    content = {".seg": segment.read_bytes()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "GROUP_ROWS", 8)
        (path,) = compact(folder).new
    return content | {".parquet": path.read_bytes()}


damage = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "zero", "copy"]), st.floats(0, 1), st.integers(1, 300)),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, faults: list[tuple[str, float, int]]) -> bytes:
    for kind, where, size in faults:
        at = min(int(where * len(content)), max(len(content) - 1, 0))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (1 << size % 8)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + bytes(n * size % 256 for n in range(size)) + content[at:]
        elif kind == "zero":
            content = content[:at] + bytes(size) + content[at + size :]
        else:
            content = content[:at] + content[max(at - size, 0) : at] + content[at:]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".seg", ".parquet"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=damage)
def test_damage_gives_no_wrong_completion_and_names_the_file(
    faults: list[tuple[str, float, int]], suffix: str, whole_files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"some{suffix}"
    path.write_bytes(damaged(whole_files[suffix], faults))
    for other in tmp_path.glob("*"):
        if other != path:
            other.unlink()
    try:
        store = CompletionStore(tmp_path)
        for n in range(40):
            wanted = completion(n, words=n % 7)
            assert store.get(wanted.key) in (wanted, None)
    except DataError as error:
        assert path.name in str(error)
    repair(tmp_path)
    assert verify(tmp_path) == []
    store = CompletionStore(tmp_path)
    for n in range(40):
        wanted = completion(n, words=n % 7)
        assert store.get(wanted.key) in (wanted, None)


MILLIONS = """
import resource, sys
import numpy as np
from pathlib import Path
from cosmopedia.store.store import CompletionStore
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = CompletionStore(Path(sys.argv[1]))
rows, draw = int(sys.argv[2]), np.random.default_rng(1)
for block in range(rows // 1_000_000):
    for frame in range(0, 1_000_000, 64 * 1024):
        keys = draw.bytes(16 * min(64 * 1024, 1_000_000 - frame))
        for at in range(0, len(keys), 16 * 64):
            store._index.add(keys[at : at + 16 * 64], store._add_frame(0, at))
    store._index.flush()
store._index.sort()
assert not any(store.present([draw.bytes(16) for _ in range(4096)]))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


@pytest.mark.slow
def test_the_index_takes_eight_bytes_per_key(tmp_path: Path) -> None:
    """Two million here; 30 million are measured by perf/generation.py."""
    process = subprocess.run(
        [sys.executable, "-c", MILLIONS, str(tmp_path), "2000000"], capture_output=True, text=True, cwd=Path.cwd()
    )
    rows, megabytes = map(float, process.stdout.split())
    assert megabytes * 2**20 / rows < 20


def test_two_writers_cannot_take_one_segment(tmp_path: Path) -> None:
    first, second = SegmentWriter(tmp_path), SegmentWriter(tmp_path)
    assert first.path != second.path
    first.close()
    second.close()

"""The completion store: done is durable, torn is ignored, damaged is named, and no key gets another's text."""

import json
import os
import random
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cosmopedia.cli.store import app as store_app
from cosmopedia.core.errors import ClusterError, DataError
from cosmopedia.generation.complete import KeyFile
from cosmopedia.generation.requests import Completion
from cosmopedia.store import segments as segments_module
from cosmopedia.store.maintenance import compact, repair, torn_tails, verify
from cosmopedia.store.store import CompletionStore
from tests.support.command_line import cosmo
from tests.support.completions import completion, run_python
from tests.support.documents import document, write_documents


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


WRITER = """
import sys
from cosmopedia.store.store import CompletionStore
from tests.support.completions import completion
with CompletionStore(sys.argv[1]) as store:
    for batch in range(int(sys.argv[2]), int(sys.argv[3])):
        store.append([completion(10 * batch + n) for n in range(10)])
        print(10 * batch + 10, flush=True)
"""


def test_what_was_stored_is_found_by_a_later_process(tmp_path: Path) -> None:
    texts = [completion(n) for n in range(300)]
    with CompletionStore(tmp_path) as store:
        store.append(texts[:150])
        store.append(texts[150:])
        assert [store.get(c.key) for c in texts] == texts
    again = CompletionStore(tmp_path)
    assert [again.get(c.key) for c in reversed(texts)] == texts[::-1]
    assert again.get(completion(999).key) is None and completion(999).key not in again
    contents = again.contents()
    assert (contents.completions, contents.tokens, contents.segments) == (300, 300 * 20, 1)


def test_keys_that_begin_alike_keep_their_own_texts(tmp_path: Path) -> None:
    pair = [Completion("ab" * 8 + end * 8, f"text {end}", "length", 1, 1, "e") for end in ("00", "ff")]
    with CompletionStore(tmp_path) as store:
        store.append(pair)
    again = CompletionStore(tmp_path)
    assert [again.get(c.key) for c in pair] == pair
    assert again.get("ab" * 8 + "77" * 8) is None


@pytest.mark.slow
def test_what_was_done_survives_kill_9_of_its_writer(tmp_path: Path) -> None:
    writer = run_python(WRITER, tmp_path, 0, 10**6)
    assert writer.stdout is not None
    done = [int(writer.stdout.readline()) for _ in range(20)][-1]
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    done = int(rest[-1]) if rest else done
    writer.wait()
    store = CompletionStore(tmp_path)
    assert [store.get(completion(n).key) for n in range(done)] == [completion(n) for n in range(done)]
    assert verify(tmp_path) == []


@pytest.mark.slow
def test_two_processes_write_at_once_and_both_are_read(tmp_path: Path) -> None:
    reader = CompletionStore(tmp_path)
    writers = [run_python(WRITER, tmp_path, first, first + 15) for first in (0, 10)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert completion(0).key not in reader
    reader.refresh()
    assert all(reader.get(completion(n).key) == completion(n) for n in range(250))
    assert reader.contents().completions == 250 and len(segments(tmp_path)) == 2


def test_a_torn_tail_is_ignored_wherever_it_was_torn(tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "whole") as store:
        store.append([completion(1)])
        cut = segments(tmp_path / "whole")[0].stat().st_size
        store.append([completion(2)])
    content = segments(tmp_path / "whole")[0].read_bytes()
    torn = tmp_path / "torn" / "a.seg"
    torn.parent.mkdir()
    for size in range(cut, len(content)):
        for filler in (b"", bytes(100)):  # a power cut can leave zeros
            if filler and size > cut:
                continue
            torn.write_bytes(content[:size] + filler)
            store = CompletionStore(torn.parent)
            assert store.get(completion(1).key) == completion(1)
            assert completion(2).key not in store
    for size in range(len(b"COSMOSG1")):
        torn.write_bytes(content[:size])
        assert CompletionStore(torn.parent).contents().completions == 0


def test_a_flipped_byte_is_reported_with_the_segments_name_and_never_read(tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "whole") as store:
        store.append([completion(1, words=3)])
        store.append([completion(2, words=3), completion(3, words=3)])
    content = segments(tmp_path / "whole")[0].read_bytes()
    damaged = tmp_path / "damaged" / "bad.seg"
    damaged.parent.mkdir()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        damaged.write_bytes(flipped)
        with pytest.raises(DataError, match=r"bad\.seg is damaged"):
            store = CompletionStore(damaged.parent)
            for n in (1, 2, 3):
                assert store.get(completion(n).key) in (completion(n, words=3), None)
        assert len(verify(damaged.parent)) == 1


def test_repair_keeps_what_is_whole(tmp_path: Path) -> None:
    with CompletionStore(tmp_path) as store:
        for n in range(5):
            store.append([completion(n)])
    path = segments(tmp_path)[0]
    frames = list(segments_module.read_frames(path))
    content = bytearray(path.read_bytes())
    content[frames[2].start + 3] ^= 1
    path.write_bytes(content)
    done = repair(tmp_path)
    assert (len(done.new), done.damaged, done.kept) == (1, [path], 4)
    assert verify(tmp_path) == [] and path.with_suffix(".damaged").exists()
    store = CompletionStore(tmp_path)
    assert [n for n in range(5) if store.get(completion(n).key) == completion(n)] == [0, 1, 3, 4]


@pytest.mark.slow
def test_a_full_disk_is_reported_and_leaves_a_valid_store(tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n" + WRITER + "\n"
    writer = run_python(code, tmp_path, 0, 10**4)
    out, err = writer.communicate()
    assert writer.returncode != 0
    assert "the completion store cannot write to" in err and "every completion that was stored before is kept" in err
    done = int(out.split()[-1])
    with CompletionStore(tmp_path) as store:
        assert store.contents().completions == done
        store.append([completion(10**6)])
    assert verify(tmp_path) == []
    assert all(CompletionStore(tmp_path).get(completion(n).key) == completion(n) for n in range(done))


def test_a_row_whose_counts_are_none_takes_no_other_with_it(tmp_path: Path) -> None:
    odd = [replace(completion(1), tokens=10**30), replace(completion(2), tokens=-7, prompt_tokens=2**70)]
    with CompletionStore(tmp_path) as store:
        store.append([completion(0), *odd, completion(3)])
        assert store.get(completion(0).key) == completion(0) and store.get(completion(3).key) == completion(3)
        assert store.contents().tokens == 20 + (2**31 - 1) + 0 + 20
    again = CompletionStore(tmp_path)
    assert again.get(odd[0].key) == replace(completion(1), tokens=2**31 - 1)
    assert again.get(odd[1].key) == replace(completion(2), tokens=0, prompt_tokens=2**31 - 1)


def test_a_segment_of_an_older_version_with_wild_counts_is_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older, CompletionStore(tmp_path) as store:
        older.setattr(segments_module, "count_within", lambda number: number)
        store.append([completion(0), replace(completion(1), tokens=2**40)])
    assert compact(tmp_path).kept == 2
    again = CompletionStore(tmp_path)
    assert again.get(completion(0).key) == completion(0)
    assert again.get(completion(1).key) == replace(completion(1), tokens=2**31 - 1)


def test_verify_names_the_bytes_of_a_write_that_never_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMO_STORE", str(tmp_path))
    with CompletionStore() as store:
        store.append([completion(1)])
        store.append([completion(2)])
    (path,) = segments(tmp_path / "completions")
    assert torn_tails(path.parent) == {}
    frame = list(segments_module.read_frames(path))[-1]
    path.write_bytes(path.read_bytes()[: frame.end - 9])
    left = frame.end - frame.start - 9
    assert verify(path.parent) == [] and torn_tails(path.parent) == {path: left}
    assert f"{path}: the last {left:,} bytes are a write that never ended" in cosmo(store_app, "verify")


def test_whole_completions_behind_a_torn_one_are_damage_and_repair_finds_them(tmp_path: Path) -> None:
    """Bytes lost in the middle of a file: the frame there reaches over its end, so a reader stops before it."""
    with CompletionStore(tmp_path) as store:
        for one in (completion(1), noise(2), completion(3), completion(4)):
            store.append([one])
    (path,) = segments(tmp_path)
    long = list(segments_module.read_frames(path))[1]
    content = path.read_bytes()
    path.write_bytes(content[: long.start + 200] + content[long.end :])
    assert completion(3).key not in CompletionStore(tmp_path)
    (problem,) = verify(tmp_path)
    assert "whole completions lie behind one that was torn" in problem and str(path) in problem
    assert repair(tmp_path).kept == 3 and verify(tmp_path) == []
    assert [n for n in (1, 2, 3, 4) if completion(n).key in CompletionStore(tmp_path)] == [1, 3, 4]


def noise(number: int) -> Completion:
    """A completion whose text does not compress."""
    return replace(completion(number), text=random.Random(number).randbytes(20_000).hex())


def on_a_disk_that_is(state: str, folder: Path, action: Callable[[], object]) -> str:
    """The error of an action in a process that may write only 4 kB per file, or nothing at all, in a folder."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if state == "full":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            elif os.getuid() == 0:
                os.setuid(65534)
            action()
            os.write(writer, b"no error")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    return os.fdopen(reader).read()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A store that another user has made and everybody may read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with CompletionStore(folder) as store:
            store.append([completion(1)])
        for path in (folder, *folder.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder
        folder.chmod(0o755)


def test_a_read_only_store_is_read_and_says_what_to_do_when_it_must_grow(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMO_STORE", str(shared))

    def read() -> None:
        assert CompletionStore(shared).get(completion(1).key) == completion(1)

    assert on_a_disk_that_is("read-only", shared, read) == "no error"
    store = CompletionStore(shared)
    for write in (store.check_writable, lambda: store.append([completion(2)]), KeyFile):
        error = on_a_disk_that_is("read-only", shared, write)
        assert error.startswith(f"ClusterError: the completion store cannot write to {shared}") and "\n" not in error
        assert "(Permission denied); make it writable for you, or copy its folder to one of yours" in error
    assert verify(shared) == [] and len(list(shared.iterdir())) == 1


def test_a_full_disk_is_known_before_anything_is_sent_and_leaves_nothing(tmp_path: Path) -> None:
    def run() -> None:
        CompletionStore(tmp_path).check_writable()

    assert on_a_disk_that_is("full", tmp_path, run) == (
        f"ClusterError: the completion store cannot write to {tmp_path} (File too large); make room or set COSMO_STORE"
        " to another folder, then run again: every completion that was stored before is kept"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_made_is_a_cluster_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot write"):
        CompletionStore(tmp_path / "file").append([completion(1)])


def test_documents_of_an_earlier_run_fill_the_store_once(tmp_path: Path) -> None:
    rows = [document(text=f"Fact number {n} about salt.", prompt_tokens=n) for n in range(5)]
    write_documents(tmp_path / "web-blogpost.parquet", rows)
    with CompletionStore(tmp_path / "store") as store:
        assert store.import_documents([tmp_path / "web-blogpost.parquet"]) == 5
        assert store.import_documents([tmp_path / "web-blogpost.parquet"]) == 0
    again = CompletionStore(tmp_path / "store")
    for row in rows:
        stored = again.get(row["key"])
        assert stored is not None
        assert (stored.text, stored.tokens, stored.prompt_tokens) == (
            row["text"],
            row["text_token_length"],
            row["prompt_tokens"],
        )


def test_the_command_shows_the_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMO_STORE", str(tmp_path))
    with CompletionStore() as store:
        store.append([completion(n) for n in range(3)])
    contents = json.loads(cosmo(store_app, "show", "--json"))
    assert list(contents.values())[:4] == [3, 60, 1, 0]  # completions, tokens, segments, parquet files
    assert re.search(r"completions +3 *\n", cosmo(store_app)) and re.search(
        r"tokens +60 *\n", cosmo(store_app, "show")
    )
    assert cosmo(store_app, "compact") == "1 segments compacted: 3 completions in 1 parquet files, 0 repeats"
    assert cosmo(store_app, "verify").startswith("1 files in")
    assert list(json.loads(cosmo(store_app, "show", "--json")).values())[:4] == [3, 60, 0, 1]

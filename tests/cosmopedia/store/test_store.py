"""The completion store: done is durable, torn is ignored, damaged is named, and no key gets another's text."""

import json
import re
import signal
from pathlib import Path

import pytest

from cosmopedia.cli.store import app as store_app
from cosmopedia.errors import ClusterError, DataError
from cosmopedia.generation.requests import Completion
from cosmopedia.store import segments as segments_module
from cosmopedia.store.maintenance import salvage, verify
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


def test_salvage_keeps_what_is_whole(tmp_path: Path) -> None:
    with CompletionStore(tmp_path) as store:
        for n in range(5):
            store.append([completion(n)])
    path = segments(tmp_path)[0]
    frames = list(segments_module.read_frames(path))
    content = bytearray(path.read_bytes())
    content[frames[2].start + 3] ^= 1
    path.write_bytes(content)
    packs, damaged, kept = salvage(tmp_path)
    assert (len(packs), damaged, kept) == (1, [path], 4)
    assert verify(tmp_path) == [] and path.with_suffix(".damaged").exists()
    store = CompletionStore(tmp_path)
    assert [n for n in range(5) if store.get(completion(n).key) == completion(n)] == [0, 1, 3, 4]


@pytest.mark.slow
def test_a_full_disk_is_said_clearly_and_leaves_a_valid_store(tmp_path: Path) -> None:
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
        found = again.get(row["key"])
        assert found is not None
        assert (found.text, found.tokens, found.prompt_tokens) == (
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

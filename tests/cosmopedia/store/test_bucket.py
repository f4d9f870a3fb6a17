"""The completion store in a bucket, against a real S3 server (moto's): shared by machines, whole after any crash."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import boto3
import pytest

from cosmopedia.cli import completions
from cosmopedia.cli.store import app as store_app
from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.execution import sending
from cosmopedia.store import bucket as bucket_module
from cosmopedia.store.bucket import Bucket
from cosmopedia.store.store import CompletionStore
from stages.generate import __main__ as generate
from tests.support.command_line import cosmo
from tests.support.completions import ROOT, completion
from tests.support.fake_tgi import FakeTgi
from tests.support.prompt_rows import write_model, write_prompts, write_settings
from tests.support.s3_server import objects as s3_server_objects
from tests.support.s3_server import s3_server

ADDRESS = "s3://completions/team"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="completions")
    monkeypatch.setenv("COSMO_STORE", ADDRESS)
    yield ADDRESS
    for item in client.list_objects_v2(Bucket="completions").get("Contents", []):
        client.delete_object(Bucket="completions", Key=item["Key"])
    client.delete_bucket(Bucket="completions")


def objects(server: str) -> list[str]:
    return sorted(s3_server_objects(server, "completions"))


def machine(folder: Path) -> Bucket:
    """The bucket as one machine sees it, with a disk of its own."""
    return Bucket(ADDRESS, folder)


def test_what_one_machine_stored_is_found_by_another(bucket: str, server: str, tmp_path: Path) -> None:
    with CompletionStore(bucket=machine(tmp_path / "a")) as store:
        store.append([completion(n) for n in range(100)])
        store.append([completion(n) for n in range(100, 120)])
        assert [store.get(completion(n).key) for n in range(120)] == [completion(n) for n in range(120)]
    assert [name.startswith("team/completions/") for name in objects(server)] == [True]
    with CompletionStore(bucket=machine(tmp_path / "b")) as other:
        assert [other.get(completion(n).key) for n in range(120)] == [completion(n) for n in range(120)]
        other.append([completion(500)])
    assert len(objects(server)) == 2
    with CompletionStore(bucket=machine(tmp_path / "a")) as store:
        assert store.get(completion(500).key) == completion(500)


def test_segments_are_uploaded_while_a_run_goes_on(
    bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "UPLOAD_BYTES", 2000)
    with CompletionStore(bucket=machine(tmp_path / "a")) as store:
        for first in range(0, 200, 20):
            store.append([completion(n) for n in range(first, first + 20)])
            assert all(store.get(completion(n).key) == completion(n) for n in range(first + 20))
        assert store.bucket is not None and store.bucket._uploading is not None
        store.bucket._uploading.join()
        assert len(objects(server)) >= 1
    again = CompletionStore(bucket=machine(tmp_path / "b"))
    assert again.contents().completions == 200


KILLED = """
import sys
from pathlib import Path
from tests.support.completions import completion
from cosmopedia.store.bucket import Bucket
from cosmopedia.store.store import CompletionStore
store = CompletionStore(bucket=Bucket("s3://completions/team", Path(sys.argv[1])))
store.append([completion(n) for n in range(10)])
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_what_a_killed_process_left_is_found_and_uploaded(bucket: str, server: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "done\n"
    process.kill()
    process.wait()
    assert objects(server) == []
    with CompletionStore(bucket=machine(tmp_path / "a")) as store:
        assert all(store.get(completion(n).key) == completion(n) for n in range(10))
    assert len(objects(server)) == 1
    assert CompletionStore(bucket=machine(tmp_path / "b")).contents().completions == 10


def test_compaction_in_the_bucket_reaches_every_machine(
    bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "SETTLE_SECONDS", -1.0)
    for first in (0, 10, 20):
        with CompletionStore(bucket=machine(tmp_path / "a/.store")) as store:
            store.append([completion(n) for n in range(first, first + 15)])
    CompletionStore(bucket=machine(tmp_path / "b/.store")).close()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "a"))
    assert cosmo(store_app, "compact") == "3 segments compacted: 35 completions in 1 parquet files, 10 repeats"
    assert [name.rsplit(".", 1)[1] for name in objects(server)] == ["parquet"]
    other = CompletionStore(bucket=machine(tmp_path / "b/.store"))
    assert other.contents().segments == 0 and other.contents().completions == 35
    assert other.get(completion(7).key) == completion(7)


def test_a_folder_store_is_copied_to_a_bucket_and_from_there_to_another(
    bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few files whatever the number of runs; a second copy sends nothing, an interrupted one goes on."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    monkeypatch.setenv("COSMO_STORE", str(ours))
    for first in range(0, 120, 10):  # a segment per run
        with CompletionStore() as store:
            store.append([completion(n) for n in range(first, first + 15)])
    said = cosmo(store_app, "push", ADDRESS)
    assert said.startswith("1 files, ") and said.endswith(f"uploaded to {ADDRESS}")
    assert [name.rsplit(".", 1)[1] for name in objects(server)] == ["parquet"]
    assert cosmo(store_app, "push", ADDRESS) == f"0 files uploaded to {ADDRESS}; 1 were there"

    with CompletionStore() as store:
        store.append([completion(500)])
        said = cosmo(store_app, "push", ADDRESS)
        assert said.endswith("1 were there; 1 segments left alone, since a run still writes to them")
    sent, fails = bucket_module.BucketFiles.send, ClusterError("the network is gone")
    monkeypatch.setattr(bucket_module.BucketFiles, "send", lambda *_: (_ for _ in ()).throw(fails))
    with pytest.raises(ClusterError, match="the network is gone"):
        completions.push(ADDRESS)
    monkeypatch.setattr(bucket_module.BucketFiles, "send", sent)
    assert completions.push(ADDRESS)[0].files == 1 and len(objects(server)) == 2

    monkeypatch.setenv("COSMO_STORE", str(theirs))
    with CompletionStore() as store:
        store.append([completion(900)])
    assert completions.pull(ADDRESS)[0][::2] == (2, 0)
    assert completions.pull(ADDRESS)[0] == (0, 0, 2, 0)
    store = CompletionStore()
    assert store.contents().completions == 127 and store.get(completion(7).key) == completion(7)
    assert completions.verify()["problems"] == []
    assert not list(tmp_path.rglob("mirror"))


@pytest.mark.parametrize(
    ("address", "message"), [(None, "cosmo store push s3://"), ("bucket/x", "bucket/x: expected")]
)
def test_a_folder_store_needs_an_address(
    address: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMO_STORE", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        completions.push(address)


def test_generate_works_on_a_store_in_a_bucket(
    bucket: str, server: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_mlflow", lambda *_: nullcontext())
    write_model(empty_folder)
    write_prompts(empty_folder, {"web-blogpost": 30})
    monkeypatch.setenv("COSMO_STORE", ADDRESS)
    with FakeTgi() as tgi:
        write_settings(empty_folder, [tgi.url])
        assert "30 sent, 0 from the store" in generate.main()
        shutil.rmtree(empty_folder / ".store")  # another machine
        shutil.rmtree(empty_folder / "data/generate")
        assert "0 sent, 30 from the store" in generate.main()
    assert len(objects(server)) == 1 and (empty_folder / ".store/runs/generate.json").exists()
    assert not list(empty_folder.glob("s3*"))


def test_a_missing_bucket_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="s3://nowhere/x cannot be listed: there is no bucket nowhere"):
        CompletionStore(bucket=Bucket("s3://nowhere/x", tmp_path)).append([completion(1)])


def test_a_bucket_that_fails_during_a_run_costs_nothing(
    bucket: str, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with CompletionStore(bucket=machine(tmp_path / "a")) as store:
        store.append([completion(1)])
        assert store.bucket is not None
        fails = PermissionError("Access Denied")
        monkeypatch.setattr(store.bucket._files, "put_file", lambda *_, **__: (_ for _ in ()).throw(fails))
    assert "Access Denied" in (message := capsys.readouterr().err) and "cosmo store push" in message
    monkeypatch.undo()
    monkeypatch.setenv("COSMO_STORE", ADDRESS)
    again = CompletionStore(bucket=machine(tmp_path / "a"))
    assert again.get(completion(1).key) == completion(1)
    again.close()
    assert len(objects(server)) == 1

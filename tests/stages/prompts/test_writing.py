"""Prompts at scale: files of a cell, runs and batches move nothing, and a killed run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import yaml

from cosmopedia.execution import sending
from cosmopedia.tables.cell_files import cell_of
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import write_table
from stages.clean import __main__ as clean
from stages.decontaminate import __main__ as decontaminate
from stages.dedup import __main__ as dedup
from stages.generate import __main__ as generate
from stages.mix import __main__ as mix
from stages.paraphrases import __main__ as paraphrases
from stages.pilot import __main__ as pilot
from stages.prompts import __main__ as prompts
from stages.prompts import exact_duplicates, near_duplicates, writing
from stages.prompts import source_rows as row_files
from stages.report.facts import glance
from stages.tokenize_corpus import __main__ as tokenize_corpus
from tests.support.documents import byte_tokenizer, bytes_of, write_items
from tests.support.fake_tgi import FakeTgi
from tests.support.own_params import OWN_PARAMS, copy_chat_patterns, own_params
from tests.support.prompt_rows import write_model
from tests.support.prompt_sources import ODD, ROOT, passage, repository, source_rows, with_duplicates
from tests.support.stage_folders import files_of, on_scratch

OUT = Path("data/prompts")
WEB = source_rows("web", with_duplicates(90))


def made_with(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> tuple[dict[str, pl.DataFrame], dict[str, bytes]]:
    """({cell: its prompts}, {file: its bytes}) of a run with these constants."""
    for module in (row_files, writing):
        for name, size in sizes.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, size)
    prompts.main()
    files = sorted(OUT.glob("*.parquet"))
    cells = {
        cell: pl.concat([pl.read_parquet(f) for f in files if cell_of(f) == cell]) for cell in map(cell_of, files)
    }
    return cells, bytes_of(OUT) | {name: Path("metrics", name).read_bytes() for name in ("prompts.json",)}


@pytest.mark.slow
def test_one_two_or_eight_files_of_a_cell_hold_the_same_table(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(empty_folder, {"web": WEB, "ready": source_rows("ready", ODD)})
    whole, files = made_with(monkeypatch)
    assert "web-wikihow.parquet" in files and whole["web-wikihow"]["prompt_id"].is_sorted()
    for shard_rows, count in ((60, 2), (14, 8)):
        cells, cut = made_with(monkeypatch, SHARD_ROWS=shard_rows, PART_ROWS=12)
        assert sorted(name for name in cut if name.startswith("web-wikihow")) == [
            f"web-wikihow.{number:05d}.parquet" for number in range(count)
        ]
        assert "ready-as_is.parquet" in cut and len(ODD) <= 14
        assert cells.keys() == whole.keys() and all(cells[name].equals(whole[name]) for name in whole)
        for name in ("removed/removed.parquet", "prompts.json"):
            assert cut[name] == files[name]


@pytest.mark.slow
def test_runs_and_batches_do_not_move_a_byte(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(empty_folder, {"web": WEB})
    sizes = {"PART_ROWS": 20, "SHARD_ROWS": 40}
    _, once = made_with(monkeypatch, **sizes)
    monkeypatch.setattr(exact_duplicates, "COMPARED", 7)
    monkeypatch.setattr(near_duplicates, "COMPARED", 50)
    monkeypatch.setattr(near_duplicates, "TEXTS", 3)
    _, in_small_pieces = made_with(monkeypatch, **sizes, RUN_ROWS=5, READ_ROWS=3)
    assert once == in_small_pieces and len(once) == 4 * 4 + 2


def test_a_folder_on_another_disk_holds_this_run_alone(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(empty_folder, {"web": WEB, "ready": source_rows("ready", ODD)})
    scratch = on_scratch(OUT)
    cells, files = made_with(monkeypatch)
    assert OUT.is_symlink() and files_of(scratch) == sorted({*files} - {"prompts.json"})
    assert {*files} - {"prompts.json"} == {"removed/removed.parquet", *(f"{cell}.parquet" for cell in cells)}
    assert not any(cell.startswith("web-old") for cell in cells)


def test_a_slice_of_a_part_is_bounded_in_bytes(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = source_rows("ready", [f"{n} {'x' * 1000}" for n in range(20)])
    repository(empty_folder, {"ready": rows})
    seen = []
    real = writing.prompts_of
    monkeypatch.setattr(writing, "prompts_of", lambda rows, *rest: seen.append(rows.num_rows) or real(rows, *rest))
    made_with(monkeypatch, SLICE_BYTES=6000)
    assert sum(seen) == 20 and 1 <= max(seen) <= 6


@pytest.mark.slow
def test_every_stage_takes_the_files_of_a_cell_for_one_cell(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics and the rows from prompts to token shards are those of a run with one file a cell."""
    monkeypatch.setattr(sending, "_mlflow", lambda *_: nullcontext())
    found = []
    for shard_rows in (250_000, 8):
        folder = empty_folder / str(shard_rows)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(writing, "SHARD_ROWS", shard_rows)
        monkeypatch.setattr(row_files, "PART_ROWS", shard_rows)
        texts = [" ".join(passage(n, 30)) for n in range(40)]
        repository(folder, {"web": source_rows("web", [*texts, texts[3]])})
        write_model(folder)
        byte_tokenizer(folder / "data/tokenizer")
        found.append(through_the_corpus(folder))
    (one_rows, one_metrics, one_files), (several_rows, several_metrics, several_files) = found
    assert one_metrics == several_metrics and one_metrics["clean"]["rows_kept"] > 100
    assert one_rows.equals(several_rows) and one_files == 4 < several_files


def through_the_corpus(folder: Path) -> tuple[pl.DataFrame, dict, int]:
    """(documents, metrics of all stages, files) of a small repository with the smoke profile."""
    with FakeTgi() as server:
        recipe, profile = map(own_params, OWN_PARAMS)
        cluster = yaml.safe_load((ROOT / "compute/endpoints.yaml").read_text(encoding="utf-8"))
        own = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        recipe |= {"profile": "p", "prompts": own["prompts"]}
        profile.pop("prompts")
        profile["tokenize_corpus"]["tokenizer"] = "data/tokenizer"
        cluster["serving"] |= {"endpoints": [server.url], "concurrency": 8}
        (folder / "compute").mkdir()
        copy_chat_patterns(folder)
        for name, content in (("params", recipe), ("profiles/p", profile), ("compute/local", cluster)):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        prompts.main()
        pilot.main()
        generate.main()
    for path in Path("data/generate").glob("*.parquet"):  # the fake's texts are too short to be kept
        rows = pl.read_parquet(path)
        texts = [". ".join(passage(int(i[:16], 16), 80)) for i in rows["completion_id"]]
        rows = rows.with_columns(pl.Series("text", texts), finish_reason=pl.lit("eos_token"), text_token_length=80)
        write_table(path, pa.Table.from_pylist(rows.to_dicts()), DOCUMENT)
    shutil.copytree(ROOT / "curation", folder / "curation", dirs_exist_ok=True)
    write_items(folder / "data/benchmarks", "arc", [("Which gas do plants take in by day?", "carbon dioxide")])
    for stage in (clean, dedup, paraphrases, decontaminate, mix, tokenize_corpus):
        stage.main()
    files = sorted(Path("data/decontaminate").glob("*.parquet"))
    metrics = {path.stem: json.loads(path.read_text()) for path in sorted(Path("metrics").glob("*.json"))}
    del metrics["tokenize_corpus"]["dataset_hash"]  # shards of tokens follow the files
    metrics["facts"] = glance(files, 1, 2)
    return pl.concat(map(pl.read_parquet, files)).sort("completion_id"), metrics, len(files)


DRIVER = """
import os, pathlib, signal, sys
from stages.prompts import __main__ as prompts
from stages.prompts import source_rows, writing

source_rows.READ_ROWS, source_rows.RUN_ROWS, source_rows.PART_ROWS, writing.SHARD_ROWS = 8, 16, 24, 24
left = int(sys.argv[1])


def counted(finish):
    def last(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return finish(*arguments)

    return last


for name in ("rename", "replace", "hardlink_to"):
    setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
prompts.main()
print(int(sys.argv[1]) - left)
"""


def run_killed(folder: Path, after: int) -> subprocess.CompletedProcess[str]:
    """The stage in a process that is killed (SIGKILL) when so many pieces are finished, just before the next."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, str(after)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(empty_folder: Path) -> None:
    made = []
    for name in ("undisturbed", "killed"):
        folder = empty_folder / name
        folder.mkdir()
        repository(folder, {"web": WEB, "wikihow": source_rows("wikihow", ODD)})
        shutil.copy(ROOT / "dvc.yaml", folder)  # its deps are what unfinished work is known by
        made.append(folder)
    whole = run_killed(made[0], 10**6)
    pieces, killed = int(whole.stdout), 0
    while (result := run_killed(made[1], pieces // 4)).returncode:
        assert result.returncode == -signal.SIGKILL, result.stderr
        killed += 1
        shutil.rmtree(made[1] / "data/prompts", ignore_errors=True)  # as DVC does
    assert 3 <= killed <= 6 and pieces > 40  # the merged removed rows and the links are made anew, nothing else
    first, second = ({**bytes_of(f / "data/prompts"), **bytes_of(f / "metrics")} for f in made)
    assert first == second and len(first) == 20
    assert [path.name for folder in made for path in (folder / ".store/work/prompts").iterdir()] == []


@pytest.mark.slow
def test_unfinished_work_for_other_params_is_not_taken_up(empty_folder: Path) -> None:
    repository(empty_folder, {"web": WEB})
    shutil.copy(ROOT / "dvc.yaml", empty_folder)
    assert run_killed(empty_folder, 12).returncode == -signal.SIGKILL
    left = {path.name for path in (empty_folder / ".store/work/prompts").iterdir()}
    settings = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings["prompts"]["extract_chars"] = 100
    Path("params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run_killed(empty_folder, 12).returncode == -signal.SIGKILL
    assert len(left) == 1 and left.isdisjoint(path.name for path in Path(".store/work/prompts").iterdir())
    assert run_killed(empty_folder, 10**6).returncode == 0
    assert max(map(len, pl.read_parquet(OUT / "web-wikihow.*.parquet")["seed_data"])) <= 100

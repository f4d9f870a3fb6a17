"""A folder of data is read whole, or what is not read is named or refused; the hub's layouts give the hub's rows."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmopedia.core.errors import ConfigError, CosmoError, DataError
from cosmopedia.records.dataset_folders import dataset_files
from cosmopedia.records.reading import read_records

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def fill(folder: Path, *names: str) -> Path:
    """Files of one row that holds the file's name."""
    for name in names:
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".parquet", ".parq"):
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(name if path.suffix == ".txt" else json.dumps({"text": name}) + "\n", encoding="utf-8")
    return folder


def texts(folder: Path, subset: str | None = None, split: str | None = None) -> list[str]:
    return [record.values["text"] for record in read_records(str(folder), subset, split, None)[0]]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path / "pages", "a.jsonl")
    os.mkfifo(tmp_path / "pages/b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl is neither a file nor a folder"):
        dataset_files(str(tmp_path / "pages"))
    with pytest.raises(ConfigError, match=r"b\.jsonl is neither a file nor a folder"):
        dataset_files(str(tmp_path / "pages/b.jsonl"))


def card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\n{text}---\n# A dataset\n", encoding="utf-8")


def test_every_file_is_read_or_named(tmp_path: Path) -> None:
    fill(tmp_path, "b.ndjson", "a.jsonl", "c.parq", "sub/deep/d.JSONL", "dataset_infos.json", "LICENSE.txt", "x.png")
    fill(tmp_path, "._b.jsonl", ".cache/e.jsonl", "README.md")
    assert texts(tmp_path) == ["a.jsonl", "b.ndjson", "c.parq", "sub/deep/d.JSONL"]
    unread = ("LICENSE.txt", "README.md", "dataset_infos.json", "x.png", "._b.jsonl", ".cache/")
    assert dataset_files(str(tmp_path)).unread == unread
    assert dataset_files(str(tmp_path)).note == f"; not read: {', '.join(unread)}"
    assert dataset_files(str(tmp_path / "a.jsonl")).note == ""


def test_lines_of_text_are_titles_only_where_nothing_else_is(tmp_path: Path) -> None:
    fill(tmp_path, "titles.txt", "LICENSE.txt")
    assert texts(tmp_path) == ["titles.txt"]
    fill(tmp_path, "more.jsonl")
    with pytest.raises(ConfigError, match=r"lines of text \(titles\.txt\) next to records \(more\.jsonl\)"):
        texts(tmp_path)


@pytest.mark.parametrize("name", ["b.arrow", "b.tsv.gz", "b.jsonl.lz4", "sub/b.zip", "b.tar.gz"])
def test_data_in_a_form_that_is_not_read_is_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "a.jsonl", name)
    with pytest.raises(ConfigError, match=f"holds {name}; wanted .jsonl"):
        texts(tmp_path)


def test_a_link_to_nowhere_is_refused_and_one_to_a_file_or_folder_followed(tmp_path: Path) -> None:
    folder, other = fill(tmp_path / "a", "a.jsonl"), fill(tmp_path / "b", "b.jsonl", "sub/c.jsonl")
    (folder / "b.jsonl").symlink_to(other / "b.jsonl")
    (folder / "sub").symlink_to(other / "sub")
    (other / "sub/up").symlink_to(folder)
    assert texts(folder) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    (folder / "z.jsonl").symlink_to("blobs/0123")
    with pytest.raises(DataError, match=r"z\.jsonl is a link to blobs/0123, which does not exist"):
        texts(folder)


@pytest.mark.parametrize("name", ["a.jsonl", "data/train-00000-of-00001.parquet", "a.txt"])
def test_a_git_lfs_pointer_is_no_data(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    (tmp_path / name).write_text(LFS)
    for dataset in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=f"{name} is a git-lfs pointer.*git lfs pull"):
            texts(dataset)


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path, "data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet")
    with pytest.raises(DataError, match="data/train: 2 of 3 shards"):
        texts(tmp_path)


CONFIGS = """configs:
- config_name: easy
  data_files:
  - {split: train, path: easy/part-*}
  - {split: test, path: [easy/test.jsonl]}
- config_name: hard
  data_files: hard/**
"""
LAYOUTS: dict[str, tuple[list[str], str, str | None, list[str]]] = {  # files, card, subset, splits
    "flat": (["a.jsonl", "b.jsonl"], "", None, ["train"]),
    "shards": (
        [f"data/{s}-{n:05d}-of-00002.parquet" for s in ("train", "test", "extra") for n in (0, 1)],
        "",
        None,
        ["train", "test", "extra"],
    ),
    "file names": (["train_0.jsonl", "sub/train_1.jsonl", "my-dev.jsonl", "eval.jsonl", "rest.jsonl"], "", None,
        ["train", "validation", "test"]),
    "folder names": (["train/x.jsonl", "a/valid/y.jsonl", "test 2/z.jsonl"], "", None,
        ["train", "validation", "test"]),
    "a config": (["easy/part-0.jsonl", "easy/part-1.jsonl", "easy/test.jsonl", "hard/x.jsonl"], CONFIGS, "easy",
        ["train", "test"]),
    "a config without splits": (["easy/part-0.jsonl", "easy/test.jsonl", "hard/sub/x.jsonl", "hard/a.jsonl"], CONFIGS,
        "hard", ["train"]),
    "the default config": (["a/x.jsonl", "b/x.jsonl"],
        "configs:\n- {config_name: b, data_files: b/*, default: true}\n- {config_name: a, data_files: a/*}\n", None,
        ["train"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_laid_out_as_the_hub_does_gives_the_rows_of_the_hub_s_library(tmp_path: Path, name: str) -> None:
    from datasets import load_dataset

    files, head, subset, splits = LAYOUTS[name]
    fill(tmp_path, *files, "dataset_infos.json")
    (tmp_path / "dataset_infos.json").write_text("{}")
    card(tmp_path, head)
    for split in splits:
        rows = load_dataset(str(tmp_path), name=subset, split=split, streaming=True)
        assert sorted(texts(tmp_path, subset, split)) == sorted(row["text"] for row in rows)
    if len(splits) == 1:
        assert texts(tmp_path, subset) == texts(tmp_path, subset, splits[0])
        return
    with pytest.raises(ConfigError, match="holds several splits: set split to one of "):
        texts(tmp_path, subset)
    with pytest.raises(ConfigError, match="has no split 'gone'; set split to one of "):
        texts(tmp_path, subset, "gone")


@pytest.mark.parametrize(
    ("head", "subset", "message"),
    [
        (CONFIGS, None, "README.md: set subset to one of easy, hard; found None"),
        (CONFIGS, "gone", "README.md: set subset to one of easy, hard; found 'gone'"),
        (CONFIGS, "hard", "none of the files that README.md names for hard is there"),
        ("configs:\n- {config_name: easy, data_files: [{path: 3}]}\n", None, "the data_files of easy cannot be read"),
        ("configs: [\n", None, "README.md: its head is no YAML"),
        ("", "gone", "no README.md that names configs, and no folder gone"),
    ],
)
def test_a_subset_that_is_not_clear_is_an_error(tmp_path: Path, head: str, subset: str | None, message: str) -> None:
    fill(tmp_path, "easy/part-0.jsonl")
    card(tmp_path, head)
    with pytest.raises(CosmoError, match=message):
        texts(tmp_path, subset)


def test_a_subset_can_be_a_folder_and_one_named_split_does_not_hide_the_other_files(tmp_path: Path) -> None:
    fill(tmp_path, "one/a.jsonl", "two/train.jsonl", "two/b.jsonl")
    assert texts(tmp_path, "one") == ["one/a.jsonl"]
    assert texts(tmp_path, "two") == ["two/b.jsonl", "two/train.jsonl"]
    assert texts(tmp_path, "two", "train") == ["two/train.jsonl"]
    assert dataset_files(str(tmp_path), "two", "train").unread == ("one/a.jsonl", "two/b.jsonl")

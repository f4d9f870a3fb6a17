"""Which files of a local dataset are read: one file, or those of a folder, also as the hub lays one out.

A folder is read with its subfolders. `subset` is a config of its README.md or a subfolder; `split` is what the config,
the files' names or their folders say, by the rules of `datasets` (data_files.py). What is not read is named, and what
looks like data in an unknown form is refused: no folder is read in part without a word.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.lineage import not_in_git
from cosmopedia.core.text import LFS_POINTER, read_text

SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".parq": "parquet", ".csv": "csv",
    ".txt": "txt",
}  # fmt: skip
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
WANTED = f"{', '.join(SUFFIXES)}, also with {', '.join(COMPRESSED)}"
# Tables and archives, which a folder may not hold without being read. Anything else (pictures, scripts) is only named.
UNREADABLE = re.compile(
    r"\.(arrow|avro|db|feather|h5|lz4|msgpack|npy|npz|orc|pkl|sqlite3?|tar|tgz|tsv|warc|xlsx?|zip|7z)$", re.IGNORECASE
)
# What comes with a dataset and is no data, although its suffix is read; the JSON files are those of `datasets`.
DOCUMENTATION = re.compile(
    r"(readme|licen[cs]e|copying|notice|change(log|s)|citation|authors|contributing)\b.*\.txt"
    r"|(dataset_infos?|dataset_dict|state|config)\.json",
    re.IGNORECASE,
)
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
NAMED = 6  # of what is not read, in a message


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a local dataset in the order of their paths, and what lies in its folder and is not read."""

    files: list[Path]
    unread: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """ "; not read: README.md", for a summary line; "" when everything is read."""
        more = f" and {len(self.unread) - NAMED} more" if len(self.unread) > NAMED else ""
        return f"; not read: {', '.join(self.unread[:NAMED])}{more}" if self.unread else ""


def kind_of(path: Path) -> str | None:
    """How a file is read: jsonl, json, parquet, csv, txt; None when it is not."""
    name = Path(path.name.lower())
    return SUFFIXES.get(Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix)


def dataset_files(dataset: str, subset: str | None = None, split: str | None = None) -> DatasetFiles:
    """The files of a local dataset.

    `ConfigError` when there is none, or when it is not clear which are meant; `DataError` when one is missing, empty,
    or a git-lfs pointer. A single file is the whole dataset, whatever its split is called.
    """
    path = Path(dataset)
    if not path.exists():
        not_in_git(path)
        raise ConfigError(f"{dataset} does not exist; correct the path in the profile, or put the file there")
    if not path.is_file() and not path.is_dir():
        raise ConfigError(f"{dataset} is neither a file nor a folder (a pipe, a socket, a device); give one of them")
    chosen = DatasetFiles([path]) if path.is_file() else _of_folder(path, subset, split)
    if not chosen.files or any(kind_of(file) is None for file in chosen.files):
        raise ConfigError(f"{dataset}: wanted a file (or a folder of files) of {WANTED}{chosen.note}")
    for file in chosen.files:
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
        if not start:
            raise DataError(f"{file} is empty; wanted at least one record")
        if start == LFS_POINTER:
            raise DataError(f"{file} is a git-lfs pointer, not the data; run git lfs pull in its repository")
    return chosen


def _of_folder(folder: Path, subset: str | None, split: str | None) -> DatasetFiles:
    found, hidden = _walk(folder)
    splits = _splits(folder, found, subset, split)
    if split is None and len(splits) > 1:
        raise ConfigError(f"{folder} holds several splits: set split to one of {', '.join(splits)}")
    if split is not None and splits and split not in splits:
        raise ConfigError(f"{folder} has no split {split!r}; set split to one of {', '.join(splits)}")
    files = splits[split] if split in splits else next(iter(splits.values()), [])
    _check_whole(folder, files)
    rest = [_name(file, folder) for file in found if file not in set(files)]
    return DatasetFiles(files, (*rest, *hidden))


def _walk(folder: Path) -> tuple[list[Path], list[str]]:
    """(all files below a folder in the order of their paths, the names of hidden files and folders).

    `DataError` for a link that leads nowhere.
    """
    files, hidden, seen = [], [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(here) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        entries = [(Path(here) / name, "") for name in names] + [(Path(here) / name, "/") for name in folders]
        hidden += [f"{_name(entry, folder)}{end}" for entry, end in entries if entry.name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(here) / name for name in names if not name.startswith(".")):
            if not path.exists():
                raise DataError(f"{path} is a link to {path.readlink()}, which does not exist; fetch it or remove it")
            if not path.is_file():
                raise DataError(f"{path} is neither a file nor a folder (a pipe, a socket, a device); remove it")
            files.append(path)
    return sorted(files), sorted(hidden)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _splits(folder: Path, found: list[Path], subset: str | None, split: str | None) -> dict[str, list[Path]]:
    """Split -> files: one split of all files where no name says another, or just one does and none is wanted."""
    configs = _configs(folder)
    if configs:
        return _files_of_config(folder, found, configs, subset)
    base = folder / subset if subset else folder
    if not base.is_dir():
        raise ConfigError(f"{folder} has no README.md that names configs, and no folder {subset}; set subset to null")
    inside = [file for file in found if file.is_relative_to(base) and not DOCUMENTATION.fullmatch(file.name)]
    if refused := [_name(file, folder) for file in inside if _unreadable(file)]:
        raise ConfigError(f"{folder} holds {', '.join(refused[:NAMED])}; wanted {WANTED}: convert or move what is not")
    data = [file for file in inside if kind_of(file)]
    named = named_splits(base, data)
    if len(named) > 1 or (named and split is not None):
        return named
    return {next(iter(named), "train"): data}


def _unreadable(file: Path) -> bool:
    return bool(UNREADABLE.search(file.name.removesuffix(file.suffix) if file.suffix in COMPRESSED else file.name))


def named_splits(base: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Split -> files, by the first of the rules of `datasets` that any file meets; {} when none does.

    1. data/<split>-00000-of-00001.*; 2. a split's word in the file's name; 3. one in the name of a folder.
    """
    sharded: dict[str, list[Path]] = {}
    for file in files:
        if file.parent == base / "data" and (shard := SHARD.match(file.name)):
            sharded.setdefault(shard["name"], []).append(file)
    if sharded:
        return sharded
    for parts in (lambda path: [path.name], lambda path: path.parts[:-1]):
        named: dict[str, list[Path]] = {}
        for file in files:
            words = {word for part in parts(file.relative_to(base)) for word in re.split(r"[-._ 0-9]+", part)}
            for split, keywords in SPLITS.items():
                if words & set(keywords):
                    named.setdefault(split, []).append(file)
        if named:
            return named
    return {}


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs that a dataset card (README.md) names, by name; those without files left out."""
    try:
        head = read_text(folder / "README.md").split("---\n", 2)
    except FileNotFoundError:
        return {}
    if len(head) < 3 or head[0]:
        return {}
    try:
        card = yaml.safe_load(head[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{folder}/README.md: its head is no YAML: {' '.join(str(error).split())}") from None
    configs = card.get("configs") if isinstance(card, dict) else None
    usable = [c for c in configs if isinstance(c, dict) and c.get("data_files")] if isinstance(configs, list) else []
    return {str(config.get("config_name", "default")): config for config in usable}


def _files_of_config(
    folder: Path, found: list[Path], configs: dict[str, dict[str, Any]], subset: str | None
) -> dict[str, list[Path]]:
    marked = [name for name, config in configs.items() if config.get("default") or name == "default"]
    name = subset or (marked or list(configs))[0]
    if name not in configs or (subset is None and len(configs) > 1 and not marked):
        raise ConfigError(f"{folder}/README.md: set subset to one of {', '.join(configs)}; found {subset!r}")
    files = configs[name]["data_files"]
    try:
        entries = (
            files if isinstance(files, list) and isinstance(files[0], dict) else [{"split": "train", "path": files}]
        )
        chosen = {entry["split"]: _matches(folder, entry["path"]) for entry in entries}
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{folder}/README.md: the data_files of {name} cannot be read ({problem})") from None
    splits = {s: [file for file in found if file in matches] for s, matches in chosen.items() if matches}
    if not splits:
        raise DataError(f"{folder}: none of the files that README.md names for {name} is there; fetch them")
    return splits


def _matches(folder: Path, patterns: str | list[str]) -> set[Path]:
    """The files that a data card's patterns mean; `**` at the end means files, too."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return {file for pattern in patterns for file in folder.glob(re.sub(r"\*\*$", "**/*", pattern))}


def _check_whole(folder: Path, files: Iterable[Path]) -> None:
    """`ConfigError` for lines of text next to records; `DataError` when some of a split's shards are missing."""
    kinds = {kind_of(file): _name(file, folder) for file in files}
    if "txt" in kinds and len(kinds) > 1:
        other = next(name for kind, name in kinds.items() if kind != "txt")
        raise ConfigError(
            f"{folder} holds lines of text ({kinds['txt']}) next to records ({other}); name one file, or move one away"
        )
    for (parent, name, count), present in Counter(_shards(files)).items():
        if present != int(count):
            raise DataError(f"{parent}/{name}: {present} of {int(count)} shards are there; fetch the others")


def _shards(files: Iterable[Path]) -> Iterator[tuple[Path, str, str]]:
    for file in files:
        if shard := SHARD.match(file.name):
            yield file.parent, shard["name"], shard["count"]

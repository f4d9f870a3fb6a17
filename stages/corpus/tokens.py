"""Token shards by datatrove, the same bytes for any number of workers.

One task a cell and split tokenises and shuffles its documents; datatrove's merger then interleaves the cells at
random. The number of tasks follows the cells, not the cluster, because it decides where a document lands.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.merger import DocumentTokenizerMerger
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer
from tokenizers import Tokenizer

from stages.corpus.cells import CorpusRun, ReadCells
from stages.draws import draw_unit
from stages.errors import ConfigError, DataError

SPLITS = ("train", "validation")
GROUPS = ("source", "style", "audience")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer in a folder of ours: its file, its end-of-text token, and the size of its numbers."""

    path: Path
    eos_token: str
    eos: int
    vocab_size: int  # greatest id + 1
    token_bytes: int  # 2 or 4, by datatrove's rule


def is_validation(seed: int, completion_id: str, fraction: float) -> bool:
    """Whether a document goes to the validation split: a draw from (seed, completion id)."""
    return draw_unit(seed, "validation", completion_id) < fraction


class SplitFilter(PipelineStep):
    """Passes the documents of one split."""

    type = "FILTER"
    name = "split"

    def __init__(self, split: str, seed: int, fraction: float):
        super().__init__()
        self.split, self.seed, self.fraction = split, seed, fraction

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        for document in cast(Iterator[Document], data):
            if is_validation(self.seed, document.id, self.fraction) == (self.split == "validation"):
                yield document


class CellTokenizer(DocumentTokenizer):
    """datatrove's DocumentTokenizer, which also counts tokens by source, style and audience (into `counts`).

    The whole text is tokenised as text: a special token that a model wrote out does not become one, and truncation or
    padding that was saved with the tokenizer is off.
    """

    def __init__(self, output_folder: Path, files: TokenizerFiles, seed: int, counts: Path):
        super().__init__(
            str(output_folder),
            str(files.path),
            eos_token=files.eos_token,
            batch_size=1000,
            seed=seed,
            save_filename="cell",
        )
        self.counts = counts
        self._found: Counter[tuple[str, ...]] = Counter()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = cast(Tokenizer, super().tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def get_loss_values(self, document: Document, encoded: Any) -> None:
        """datatrove's hook, called for every document with its tokens."""
        self._found[tuple(document.metadata[group] for group in GROUPS)] += len(encoded.ids)
        self.stat_update("counted")

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        super().run(data, rank, world_size)
        rows = [[*group, tokens] for group, tokens in sorted(self._found.items())]
        (self.counts / f"{rank:05d}.json").write_text(json.dumps(rows))


def copy_tokenizer(source: str, folder: Path) -> TokenizerFiles:
    """Bring a tokenizer into a folder: "generator", a folder, a tokenizer.json, or a hub id ("id@revision").

    Its end-of-text token is the one that tokenizer_config.json names.
    """
    for path in find_tokenizer("models/generator" if source == "generator" else source):
        shutil.copyfile(path, folder / path.name)
    config = folder / "tokenizer_config.json"
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("eos_token") if config.is_file() else None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"tokenizer {source}: not readable ({error}); give a fast tokenizer's files") from None
    eos_token = named.get("content") if isinstance(named, dict) else named
    eos = tokenizer.token_to_id(eos_token) if isinstance(eos_token, str) else None
    if eos is None:
        raise DataError(f"tokenizer {source}: tokenizer_config.json names no eos_token of its vocabulary ({named!r})")
    size = max(tokenizer.get_vocab().values()) + 1
    token_bytes = 2 if tokenizer.get_vocab_size() <= 2**16 else 4
    return TokenizerFiles(folder / "tokenizer.json", cast(str, eos_token), eos, size, token_bytes)


def find_tokenizer(source: str) -> list[Path]:
    """The files of a tokenizer: those of a folder, of the folder of a tokenizer.json, or of a hub repository."""
    place = Path(source)
    folder = place.parent if place.is_file() else place
    if folder.is_dir():
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder}/tokenizer.json is missing; run the generator stage, or set tokenize_corpus.tokenizer"
            )
        return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if source.startswith((".", "/")) or source.endswith(".json") or source.startswith("models/"):
        raise DataError(
            f"tokenizer {source} is missing; run the stage that writes it, or set tokenize_corpus.tokenizer"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from stages.seeds.reading import resolve_revision

    hub_id, _, revision = source.partition("@")
    commit = resolve_revision("model", hub_id, revision or None)
    try:
        found = Path(snapshot_download(hub_id, revision=commit, allow_patterns=list(TOKENIZER_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {source} cannot be had from the hub ({type(error).__name__})") from None
    return find_tokenizer(str(found))


def write_shards(
    run: CorpusRun, split: str, files: TokenizerFiles, seed: int, fraction: float, shard_tokens: int
) -> dict[tuple[str, ...], int]:
    """Tokenise one split into `<out>/<split>/NNN_<split>.ds` (+ `.index`, `.metadata`).

    Returns tokens by (source, style, audience).
    """
    cells, counts, target = run.scratch / f"{split}-cells", run.scratch / f"{split}-counts", run.out / split
    counts.mkdir()
    target.mkdir()
    steps = [ReadCells(run.cells), SplitFilter(split, seed, fraction), CellTokenizer(cells, files, seed, counts)]
    run.run(f"tokenise {split}", steps, tasks=len(run.cells), total=run.rows)
    for index in sorted(cells.glob("*.ds.index")):
        if index.stat().st_size == 0:  # a cell without documents of this split
            for leftover in cells.glob(f"{index.name.removesuffix('.index')}*"):
                leftover.unlink()
    if any(cells.glob("*.ds")):
        merger = DocumentTokenizerMerger(
            str(cells), str(target.resolve()), split, max_tokens_per_file=shard_tokens, seed=seed, progress=False
        )
        run.run(f"merge {split}", [merger], tasks=1)
    for metadata in target.glob("*.metadata"):  # its first line must name a folder that holds the tokenizer
        _, *rest = metadata.read_text(encoding="utf-8").split("\n")
        metadata.write_text("\n".join([f"{run.out}|{files.token_bytes}", *rest]), encoding="utf-8")
    found: Counter[tuple[str, ...]] = Counter()
    for part in sorted(counts.glob("*.json")):
        for *group, tokens in json.loads(part.read_text()):
            found[tuple(group)] += tokens
    return dict(sorted(found.items()))


def check_shards(folder: Path, token_bytes: int) -> tuple[int, int]:
    """(tokens, documents) of a split's shards. `DataError` when a shard and its index do not fit together."""
    tokens = documents = 0
    for shard in sorted(folder.glob("*.ds")):
        index = Path(f"{shard}.index").read_bytes()
        last = int.from_bytes(index[-8:], "little")
        if shard.stat().st_size != last * token_bytes:
            raise DataError(
                f"{shard}: expected {last * token_bytes} bytes by its index, got {shard.stat().st_size};"
                " run the stage again"
            )
        tokens, documents = tokens + last, documents + len(index) // 8
    return tokens, documents

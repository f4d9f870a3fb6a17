"""Promises about files between two steps: damage is found before the file is used, and the file is named."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rows import byte_tokenizer, document, repository, write_documents

from stages import clean, dedup, tokenize_corpus
from stages.corpus.cells import CorpusRun
from stages.draws import draw_u64
from stages.errors import DataError

STAGES = {
    "clean": ("data/generate", clean),
    "dedup": ("data/clean", dedup),
    "tokenize_corpus": ("data/decontaminate", tokenize_corpus),
}


def essay(number: int) -> str:
    drawn = (draw_u64(1, number, i) for i in range(120))  # letters: MinHash sees every number as 0
    return " ".join("".join(chr(97 + (value >> shift) % 26) for shift in (0, 8, 16)) for value in drawn) + "."


@pytest.fixture
def corpus(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cells for each of the stages, with duplicates and texts to remove, run as three tasks."""
    monkeypatch.setattr("stages.corpus.cells.ROWS_PER_TASK", 4)
    byte_tokenizer(empty_folder / "models/generator")
    for folder, _ in STAGES.values():
        for n, cell in enumerate(("openstax-college", "web-blogpost", "wikihow-article")):
            rows = [document(text=essay(20 * n + i), completion_id=f"{n}{i:02}") for i in range(8)]
            rows.append(document(text=essay(1), completion_id=f"{n}90"))  # exact
            rows.append(document(text=f"{essay(2)} And {cell}.", completion_id=f"{n}91"))  # near
            if folder != "data/decontaminate":
                rows.append(document(text=" ", completion_id=f"{n}92"))
            write_documents(empty_folder / folder / f"{cell}.parquet", rows)
    return empty_folder


def run(folder: Path, stage: str) -> None:
    repository(folder, stage, cluster_tasks=3)
    STAGES[stage][1].main()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if path.suffix == ".parquet":  # in its data; nothing guards the statistics in the footer
        group = pq.read_metadata(path).row_group(0)
        column = max(map(group.column, range(group.num_columns)), key=lambda column: column.total_compressed_size)
        place = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    ("stage", "after", "pattern"),
    [
        ("clean", "clean", "removed/*.parquet"),
        ("dedup", "exact", "fingerprints/*/*.parquet"),
        ("dedup", "twins", "twins/*.parquet"),
        ("dedup", "signatures", "signatures/bucket_003/*.sig"),
        ("dedup", "buckets", "buckets/00005_00.dups"),
        ("dedup", "clusters", "clusters/*.clusters"),
        ("dedup", "members", "members/*/*.parquet"),
        ("dedup", "judge", "judged/*.parquet"),
        ("dedup", "filter", "removed-near/*.parquet"),
        ("tokenize_corpus", "tokenise train", "train-cells/*.ds"),
        ("tokenize_corpus", "tokenise train", "train-cells/*.index"),
        ("tokenize_corpus", "tokenise train", "train-documents/*.parquet"),
        ("tokenize_corpus", "merge train", "train-order.npy"),
    ],
)
def test_a_damaged_file_between_two_steps_is_named(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: str, pattern: str, damage
):
    whole = CorpusRun.run
    hit: list[str] = []

    def damaging(self: CorpusRun, name: str, *arguments, **options):
        found = whole(self, name, *arguments, **options)
        if name == after:
            path = next(path for path in sorted(self.scratch.glob(pattern)) if path.stat().st_size)
            damage(path)
            hit.append(str(path))
        return found

    monkeypatch.setattr(CorpusRun, "run", damaging)
    with pytest.raises(DataError) as caught:
        run(corpus, stage)
    assert len(hit) == 1 and str(caught.value).startswith(f"{hit[0]}: ")
    assert "run the stage again" in str(caught.value)
    monkeypatch.setattr(CorpusRun, "run", whole)
    run(corpus, stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_input_is_named(corpus: Path, stage: str, damage):
    cell = corpus / STAGES[stage][0] / "web-blogpost.parquet"
    damage(cell)
    with pytest.raises(DataError, match=r"web-blogpost\.parquet: "):
        run(corpus, stage)

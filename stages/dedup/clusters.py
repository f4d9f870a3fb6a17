"""From keys to clusters: documents with an equal key are joined, by sorting the keys of one range after the other."""

from pathlib import Path
from typing import Any

import numba
import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from stages.dedup.index import KEY

KEYS_PER_PART = 1 << 23  # that a task sorts: 134 MB, and as much again for its work


class FindPairs(PipelineStep):
    """Task `n` of N pairs the documents of the n-th range of keys: `<target>/<n>.npy`, int64, shape (pairs, 2).

    The first document of a key is paired with each of the others.
    """

    type = "DEDUP"
    name = "pairs"

    def __init__(self, keys: Path, target: Path):
        super().__init__()
        self.keys, self.target = keys, target

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Read this range of every run, sort, and pair."""
        limits = np.array([(rank << 64) // world_size, ((rank + 1) << 64) // world_size - 1], np.uint64)
        parts = [np.empty(0, KEY)]
        for path in sorted(self.keys.glob("*.npy")):
            run = np.load(path, mmap_mode="r")
            begin, end = np.searchsorted(run["key"], limits[0]), np.searchsorted(run["key"], limits[1], "right")
            parts.append(run[begin:end])
        self.target.mkdir(exist_ok=True)
        np.save(self.target / f"{rank:05d}.npy", pairs(np.concatenate(parts)))


def pairs(rows: np.ndarray) -> np.ndarray:
    """Of documents with an equal key the first with each of the others: int64, shape (pairs, 2), distinct."""
    rows = rows[np.argsort(rows["key"])]
    again = np.flatnonzero(rows["key"][1:] == rows["key"][:-1])
    rows = rows[np.union1d(again, again + 1)]
    rows = rows[np.lexsort((rows["document"], rows["key"]))]
    _, starts, sizes = np.unique(rows["key"], return_index=True, return_counts=True)
    both = np.column_stack([np.repeat(rows["document"][starts], sizes), rows["document"]])
    return np.unique(both[both[:, 0] != both[:, 1]], axis=0)


class Clusters(PipelineStep):
    """Joins the pairs of one file after the other: `<target>`, int64 (document, first document of its cluster, chain).

    `chain` is the first document of the cluster that the synthetic documents (those below `synthetic`) make without
    natural text in between; -1 for natural text.
    """

    type = "DEDUP"
    name = "clusters"

    def __init__(self, folder: Path, target: Path, synthetic: int):
        super().__init__()
        self.folder, self.target, self.synthetic = folder, target, synthetic

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Takes 56 bytes per document that meets another."""
        paths = sorted(self.folder.glob("*.npy"))
        documents = np.empty(0, dtype=np.int64)
        for path in paths:
            documents = np.union1d(documents, np.load(path))
        roots, chains = np.arange(documents.size), np.arange(documents.size)
        for path in paths:
            places = np.searchsorted(documents, np.load(path))
            join(roots, places)
            join(chains, places[(documents[places] < self.synthetic).all(axis=1)])
        chain = np.where(documents < self.synthetic, documents[chains], -1)
        np.save(self.target, np.column_stack([documents, documents[roots], chain]))


@numba.njit(cache=True, nogil=True)
def join(roots: Any, joined: Any) -> None:
    """Join pairs of places; `roots` gets for each place the smallest of its cluster, of which it is a place itself."""
    for pair in range(len(joined)):
        one, other = joined[pair, 0], joined[pair, 1]
        while roots[one] != one:
            roots[one] = roots[roots[one]]
            one = roots[one]
        while roots[other] != other:
            roots[other] = roots[roots[other]]
            other = roots[other]
        roots[max(one, other)] = min(one, other)
    for place in range(len(roots)):
        roots[place] = roots[roots[place]]

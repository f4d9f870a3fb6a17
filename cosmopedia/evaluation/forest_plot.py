"""A forest plot: every row's difference with its interval, a panel per measure, zero marked."""

import io
from collections.abc import Sequence
from typing import Any

from cosmopedia.evaluation.comparison import BETTER, EQUAL, LOWER, UNKNOWN, WORSE, Row
from cosmopedia.evaluation.wording import UNITS

COLOURS = {BETTER: "#1b7837", WORSE: "#b2182b", EQUAL: "#555555", UNKNOWN: "#555555"}
SETTINGS: Any = {"svg.hashsalt": "cosmopedia", "svg.fonttype": "path", "font.size": 9}


def forest_plot(rows: Sequence[Row], baseline: str) -> str:
    """The rows as an SVG file's text; the same rows give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measures = list(dict.fromkeys(row.scope.measure for row in rows))
    groups = [[row for row in rows if row.scope.measure == measure] for measure in measures]
    heights = [len(group) + 1.5 for group in groups]
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(
            len(groups),
            1,
            figsize=(8, 0.26 * sum(heights) + 0.9 * len(groups)),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for axis, measure, group in zip(axes[:, 0], measures, groups, strict=True):
            _draw(axis, measure, group, baseline)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
    return text.getvalue()


def _draw(axis: Any, measure: str, rows: Sequence[Row], baseline: str) -> None:
    factor = UNITS[measure].factor
    several = len({row.arm for row in rows}) > 1
    names = []
    for place, row in enumerate(rows):
        one, colour = row.estimate, COLOURS[row.verdict]
        alone = one.low is None  # one seed: the interval of items alone, dashed
        low, high = row.bootstrap if one.low is None or one.high is None else (one.low, one.high)
        style = {"linestyle": ":" if alone else "-", "linewidth": 1.6, "color": colour}
        fill = "none" if alone else "full"
        axis.plot([low * factor, high * factor], [place, place], **style)
        axis.plot(one.difference * factor, place, "o", color=colour, markersize=5, fillstyle=fill)
        names.append(f"{row.scope.name}{f', {row.arm}' if several else ''}")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    better = "left" if measure in LOWER else "right"
    axis.set_title(f"{UNITS[measure].title}: {better} is better", loc="left", fontsize=10)
    axis.set_xlabel(f"difference to {baseline}, {UNITS[measure].unit}, 95% interval; grey: not distinguishable")

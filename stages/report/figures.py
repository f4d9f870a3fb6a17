"""The report's figures, as SVG files with the same bytes for the same facts."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmopedia.corpus.components import is_natural
from cosmopedia.tables.cell_files import source_and_style
from stages.report.facts import FILTERS, Facts, totals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, amber and red stay apart for colour-blind eyes, and no figure needs more: what has many names has them written.
INK, QUIET, ACCENT, SECOND, LOSS = "#1d2733", "#8a95a3", "#2a6f97", "#e09f3e", "#c8553d"
WIDTH = 5.6  # inches: a phone shows four fifths of a figure, at a size that can be read
STYLE = {
    "svg.hashsalt": "cosmopedia",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.constrained_layout.use": True,
}
OPENINGS = 15  # the most common ones that are shown
SMOOTHING = 0.025  # share of the steps to each side that the drawn mean of the loss is taken over


def draw_all(facts: Facts, folder: Path) -> dict[str, Path]:
    """Draw every figure into `folder` as <name>.svg; paths by name, in the page's order."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures: dict[str, Callable[[Facts], Figure]] = {
        "waterfall": waterfall,
        **({"removals": removals} if facts.metrics[FILTERS[0]].get("cells") else {}),
        "prompts": prompts,
        "openings": openings,
        "tokens": tokens,
        "loss": loss,
        "scores": scores,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        for name, draw in figures.items():
            figure = draw(facts)
            paths[name] = folder / f"{name}.svg"
            figure.savefig(paths[name], metadata={"Date": None, "Creator": None})
            plt.close(figure)
    return paths


def short(count: float) -> str:
    """A number in a label: 950, 12.3k, 4.5M, 25.1B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def _bars(axes: "Axes", items: list[tuple[str, int]], colour: Any, title: str) -> None:
    names, values = [name for name, _ in items], [value for _, value in items]
    positions = range(len(items))
    axes.barh(positions, values, color=colour, height=0.68)
    axes.set_yticks(positions, names)
    axes.set_ylim(len(items) - 0.4, -0.6)
    axes.set_xlim(0, max([*values, 1]) * 1.18)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for position, value in zip(positions, values, strict=True):
        axes.text(value, position, f" {short(value)}", va="center", color=INK, fontsize=8)
    axes.set_title(title)


def waterfall(facts: Facts) -> "Figure":
    """Documents from generation to the finished corpus, with what each stage removed, by reason."""
    import matplotlib.pyplot as plt

    generated = facts.metrics[FILTERS[0]]["rows_in"]
    steps: list[tuple[str, int, int, bool]] = [("generated", 0, generated, True)]  # label, from, to, a level
    level = generated
    for stage in FILTERS:
        for reason, count in sorted(facts.metrics[stage]["removed"].items(), key=lambda item: (-item[1], item[0])):
            if count:
                steps.append((f"{stage}: {reason.replace('_', ' ')}", level - count, level, False))
                level -= count
    steps.append(("corpus", 0, level, True))
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.3 * len(steps)))
    for position, (_, low, high, whole) in enumerate(steps):
        axes.barh(position, high - low, left=low, color=ACCENT if whole else LOSS, height=0.68)
        label = f" {high:,}" if whole else f" −{high - low:,}"
        axes.text(high, position, label, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(steps)), [name for name, *_ in steps])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.set_xlim(0, max(generated, 1) * 1.12)
    axes.set_xlabel("documents")
    axes.tick_params(axis="y", length=0)
    return figure


def removals(facts: Facts) -> "Figure":
    """Of each source and style, the shares of its completions that cleaning, dedup and decontamination removed."""
    import matplotlib.pyplot as plt

    stages = [facts.metrics[stage].get("cells", {}) for stage in FILTERS]
    names = [name for name in sorted(stages[0]) if not is_natural(name)]
    figure, axes = plt.subplots(figsize=(WIDTH, 1 + 0.24 * len(names)))
    left = [0.0] * len(names)
    for label, counts, colour in zip(
        ("clean", "duplicates", "contaminated"), stages, (ACCENT, SECOND, LOSS), strict=True
    ):
        removed = [counts.get(name, {}).get("rows_removed", 0) for name in names]
        shares = [100 * n / max(1, stages[0][name]["rows_in"]) for n, name in zip(removed, names, strict=True)]
        axes.barh(range(len(names)), shares, left=left, color=colour, height=0.68, label=label)
        left = [low + share for low, share in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(names)), [" · ".join(source_and_style(name)).replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max([*left, 5.0]) * 1.05)
    axes.set_xlabel("% of the completions")
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return figure


def prompts(facts: Facts) -> "Figure":
    """Prompts by source, format and audience."""
    import matplotlib.pyplot as plt

    groups = [(column, totals(facts.prompts, column, "prompts")) for column in ("source", "format", "audience")]
    counts = [len(items) for _, items in groups]
    figure, several = plt.subplots(3, 1, figsize=(WIDTH, 1.5 + 0.24 * sum(counts)), height_ratios=counts)
    for axes, (column, items) in zip(several, groups, strict=True):
        _bars(axes, [(name.replace("_", " "), count) for name, count in items], ACCENT, f"by {column}")
    return figure


def openings(facts: Facts) -> "Figure":
    """The most common first words of the completions, and of the documents that cleaning left."""
    import matplotlib.pyplot as plt

    before, after = facts.openings
    pairs = {text: (before.counts[text], after.counts[text]) for text in before.counts | after.counts}
    most = sorted(pairs.items(), key=lambda item: (-max(item[1]), item[0]))[:OPENINGS]
    figure, axes = plt.subplots(figsize=(WIDTH, 1 + 0.36 * len(most)))
    for offset, side, colour, label in ((-0.19, 0, LOSS, "completions"), (0.19, 1, ACCENT, "after cleaning")):
        counts = [pair[side] for _, pair in most]
        positions = [position + offset for position in range(len(most))]
        axes.barh(positions, counts, color=colour, height=0.36, label=label)
        for position, count in zip(positions, counts, strict=True):
            axes.text(count, position, f" {count:,}", va="center", fontsize=7, color=INK)
    axes.set_yticks(range(len(most)), [printable(text) for text, _ in most], parse_math=False)
    axes.set_ylim(len(most) - 0.4, -0.6)
    axes.set_xlim(0, max([count for _, pair in most for count in pair] + [1]) * 1.12)
    axes.set_xlabel(f"documents, of {before.rows:,} before and {after.rows:,} after")
    axes.tick_params(axis="y", length=0)
    if most:
        axes.legend(frameon=False, loc="lower right")
    return figure


def printable(text: str, longest: int = 40) -> str:
    """A text from a model as a label: signs that the font has, and not too many."""
    plain = "".join(sign if sign.isprintable() and ord(sign) < 0x2E80 else "?" for sign in text)
    return f"“{plain[:longest]}”" if plain else "(empty)"


def tokens(facts: Facts) -> "Figure":
    """Tokens of the finished corpus by source and style."""
    import matplotlib.pyplot as plt

    cells = sorted(facts.cells, key=lambda c: (c.source, -c.tokens, c.style))
    hues = {source: (ACCENT, SECOND)[i % 2] for i, source in enumerate(sorted({c.source for c in cells}))}
    figure, axes = plt.subplots(figsize=(WIDTH, 0.7 + 0.24 * len(cells)))
    items = [(f"{c.source} · {c.style.replace('_', ' ')}", c.tokens) for c in cells]
    _bars(axes, items, [hues[c.source] for c in cells], "tokens by source and style")
    return figure


def loss(facts: Facts) -> "Figure":
    """Training loss by step, its running mean, the validation loss at the end, and the learning rate."""
    import matplotlib.pyplot as plt

    steps = [int(row["step"]) for row in facts.losses]
    values = [float(row["loss"]) for row in facts.losses]
    reach = round(len(values) * SMOOTHING)
    near = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    smooth = [sum(several) / len(several) for several in near]
    figure, (axes, rates) = plt.subplots(2, 1, figsize=(WIDTH, 4), sharex=True, height_ratios=[4, 1])
    axes.plot(steps, values, color=ACCENT, alpha=0.35, linewidth=0.8, label="each step")
    axes.plot(steps, smooth, color=ACCENT, linewidth=1.8, label="running mean")
    if (validation := facts.metrics["train"].get("validation_loss")) is not None:
        axes.plot(
            steps[-1], validation, "o", color=SECOND, markersize=6, label=f"validation {validation:.3f}", clip_on=False
        )
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False, loc="upper right")
    rates.plot(steps, [float(row["learning_rate"]) for row in facts.losses], color=QUIET, linewidth=1.2)
    rates.set_ylim(0)
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set_xlabel("step")
    figure.align_ylabels()
    return figure


def scores(facts: Facts) -> "Figure":
    """Benchmark scores with standard errors, next to the highest floor."""
    import matplotlib.pyplot as plt

    evaluation = facts.metrics["evaluate"]
    panels = [(f"average: {name}", scores) for name, scores in evaluation["panels"].items()]
    rows = [*evaluation["tasks"].items(), *panels]
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.34 * len(rows)))
    for offset, name, colour in ((-0.14, "acc_norm", ACCENT), (0.14, "acc", SECOND)):
        axes.errorbar(
            [scores[name] for _, scores in rows],
            [position + offset for position in range(len(rows))],
            xerr=[scores[f"{name}_stderr"] or 0 for _, scores in rows],
            fmt="o",
            markersize=4.5,
            color=colour,
            elinewidth=1.2,
            label=f"{name} ± standard error",
        )
    floors = [scores["floor"]["acc_norm"] for _, scores in rows]
    positions = list(range(len(rows)))
    axes.vlines(
        floors,
        [p - 0.36 for p in positions],
        [p + 0.36 for p in positions],
        color=QUIET,
        linewidth=1.6,
        label="highest floor of acc_norm",
    )
    axes.axhline(len(rows) - len(panels) - 0.5, color=QUIET, linewidth=0.6)
    axes.set_yticks(positions, [name.replace("_", " ") for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy")
    axes.grid(axis="x", color="#e6e9ed", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.35, 1.16), ncols=2)
    return figure

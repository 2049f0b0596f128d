"""The pictures of a report, as SVG in the page's colours, with the same bytes for the same numbers.

Matplotlib draws with a fixed palette. Each of its colours is then replaced by a CSS variable, with that colour as its
fallback. A picture inlined in a page therefore turns dark with it, and the file alone still shows in any browser.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stages.common.questions import telling
from stages.report.palette import PALETTE, css
from stages.report.wording import NAMES
from stages.stage import JSON

LOSSES: dict[str, dict[str, Any]] = {
    "validation_loss": {"label": "validation", "color": PALETTE["recovered"], "linewidth": 2, "marker": "o"},
    "loss": {"label": "training", "color": PALETTE["muted"], "linewidth": 0.9, "alpha": 0.7},
}
FOLLOWED = {"curve_bits_per_byte": ("bits per byte", 1), "curve_accuracy": ("accuracy (%)", 100)}
"""Scores that a recovery's points may hold besides losses: {field: (label of the axis, scale)}."""

MARKERS = {"dense": "D", "dense_recovered": "s", "pruned": "v", "recovered": "o", "quantised": "X"}
"""Marker of each model, which tells the models apart where colour can't."""

STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a name with `$` in it is a name, no formula
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["rule"],
    "ytick.color": PALETTE["rule"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def curve_svg(curve: Sequence[JSON], questions: int) -> str | None:
    """Return the recovery curve over tokens trained on, or None where there is no curve to draw.

    Scores that were followed during the recovery are beside the losses, in panels of their own, where there were enough
    questions (`stages.common.questions`).
    """
    curve = [telling(point, questions) for point in curve]
    losses = {key: points for key in LOSSES if len(points := _points(curve, key)) > 1}
    followed = {key: points for key in FOLLOWED if len(points := _points(curve, key)) > 1}
    panels = bool(losses) + len(followed)
    if not panels:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        widths = [1.7] * bool(losses) + [1.0] * len(followed)
        axes = list(figure.subplots(1, panels, squeeze=False, width_ratios=widths)[0])
        if losses:
            for key, points in losses.items():
                axes[0].plot(*zip(*points, strict=True), markersize=4, **LOSSES[key])
            _over_tokens(axes[0], "loss (nats a token)")
            axes.pop(0).legend(loc="upper right", labelcolor="linecolor")
        for panel, (key, points) in zip(axes, followed.items(), strict=True):
            label, scale = FOLLOWED[key]
            values = [(tokens, scale * value) for tokens, value in points]
            panel.plot(*zip(*values, strict=True), color=PALETTE["recovered"], linewidth=1.6, marker="o", markersize=4)
            _over_tokens(panel, label, ticks=4)
        return svg(figure, "curve")


def tasks_svg(tasks: JSON, average: JSON | None) -> str | None:
    """Return each task's accuracy and bits per byte by model, with 95 % intervals and chance.

    Where no task has bits per byte, its panel is left out.
    """
    rows = [*tasks.values(), *([{"label": "mean", **average}] if average and len(tasks) > 1 else [])]
    if not rows:
        return None
    models = [model for model in MARKERS if model in rows[0]]
    dense_bits = any(row[model]["bits_per_byte"] is not None for row in rows for model in models)
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x", "axes.spines.left": False}):
        height = 1.15 + (0.24 + 0.07 * len(models)) * len(rows)
        figure = Figure(figsize=(8.4, height), layout="constrained")
        panels = figure.subplots(
            1, 1 + dense_bits, sharey=True, squeeze=False, width_ratios=(1.35, 1)[: 1 + dense_bits]
        )
        accuracy = panels[0, 0]
        _dots(accuracy, rows, models, "acc", scale=100)
        chances = [(100 * row["chance"], place) for place, row in enumerate(rows) if row["chance"] is not None]
        if chances:
            tick = {"color": PALETTE["ink"], "marker": "|", "markersize": 17, "markeredgewidth": 1.2}
            accuracy.plot(*zip(*chances, strict=True), linestyle="none", label="chance", **tick)
        named = average and average["metric"] != "acc"
        accuracy.set_xlabel("score of the task (%)" if named else "accuracy (%)")
        accuracy.set_yticks(range(len(rows)), [row["label"] for row in rows])
        accuracy.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
        accuracy.set_ylim(len(rows) - 0.4, -0.6)
        if dense_bits:
            _dots(panels[0, 1], rows, models, "bits_per_byte", scale=1)
            panels[0, 1].set_xlabel("bits per byte (less is better)")
            panels[0, 1].tick_params(axis="y", length=0)
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper left", ncols=5, handletextpad=0.4)
        return svg(figure, "tasks")


def _dots(axes: Axes, rows: Sequence[JSON], models: Sequence[str], key: str, *, scale: float) -> None:
    """Draw one dot a model and row. Models are slightly apart, so that their intervals don't hide each other."""
    for turn, model in enumerate(models):
        shift = 0.2 * (turn - (len(models) - 1) / 2)
        seen = [(place + shift, row[model]) for place, row in enumerate(rows) if row[model][key] is not None]
        if not seen:
            continue
        values = [scale * scores[key] for _, scores in seen]
        ends = [[scale * end for end in scores[f"{key}_interval"]] for _, scores in seen]
        axes.errorbar(
            values,
            [place for place, _ in seen],
            xerr=[
                [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
                [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
            ],
            fmt=MARKERS[model],
            color=PALETTE[model],
            markersize=4.5,
            elinewidth=1.3,
            label=NAMES.get(model, model),
        )


def _points(curve: Sequence[JSON], key: str) -> list[tuple[float, float]]:
    """Return (tokens, value) where the curve has the value. A training point need not be a validation point."""
    return [(point["tokens"], point[key]) for point in curve if point.get(key) is not None]


def _over_tokens(axes: Axes, label: str, *, ticks: int = 7) -> None:
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _short(tokens)))


def _short(tokens: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:g}{name}"
    return f"{tokens:g}"


def svg(figure: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element with ids of its own, so that several can share a page."""
    stream = io.StringIO()
    # Matplotlib's ids are random without a salt, and its metadata has the date: both would change the bytes.
    with mpl.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip() + "\n"
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for variable, colour in PALETTE.items():
        text = text.replace(colour, css(variable))
    return text

"""The picture of held-out perplexity by how much was removed: ways of pruning, and what recovery made of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from stages.report.figures import PALETTE, SERIES, STYLE, svg
from stages.report.wording import perplexity

MARKERS = "osD^PX*<>"
"""Markers of the recoveries of one pruning. A pruned model's is an open triangle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model at one size.

    Attributes:
        removed: share of the dense model's parameters that was removed.
        perplexity: perplexity of held-out text.
        interval: its two ends, where there is one.
    """

    removed: float
    perplexity: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """One way of pruning at several sizes, and the recoveries of its models.

    Attributes:
        name: what it is called.
        pruned: its models before any recovery, by the ratio that was asked for.
        recovered: by the name of each recovery, its models in the same way.
    """

    name: str
    pruned: Mapping[float, Point]
    recovered: Mapping[str, Mapping[float, Point]]


def ratios_svg(prunings: Sequence[Pruning], dense: float | None) -> str:
    """Return perplexity over what was removed, on a log axis; the dense model is a horizontal line.

    A way of pruning has one colour, with a broken line before recovery and a whole line for each recovery.
    """
    drawn = [line for number, pruning in enumerate(prunings) for line in _lines(pruning, SERIES[number % len(SERIES)])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6 + 0.12 * len(drawn)), layout="constrained")
        axes = figure.subplots()
        for place, (points, style) in enumerate(drawn):
            # Lines stand slightly apart, so that their whiskers don't hide each other.
            _draw(axes, points, 0.25 * (place - (len(drawn) - 1) / 2), style)
        if dense is not None:
            label = f"dense ({perplexity(dense)})"
            axes.axhline(dense, color=PALETTE["dense"], linewidth=1.4, linestyle=":", label=label)
        sizes = {round(100 * point.removed) for points, _ in drawn for point in points}
        axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
        axes.set_xlabel("parameters removed (%)")
        axes.set_yscale("log")
        axes.set_ylabel("held-out perplexity (less is better)")
        for format_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            format_ticks(FuncFormatter(lambda value, _: f"{value:g}" if _written(value) else ""))
        axes.tick_params(axis="y", which="minor", labelsize=8, labelcolor=PALETTE["muted"])
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        return svg(figure, "ratios")


def _lines(pruning: Pruning, colour: str) -> Iterator[tuple[list[Point], dict[str, Any]]]:
    """Yield the points of each line, the smallest cut first, and how the line is drawn."""
    cut = {"linestyle": "--", "marker": "v", "markerfacecolor": "none", "label": f"{pruning.name}, pruned"}
    lines = [(pruning.pruned, cut)]
    for turn, (name, models) in enumerate(pruning.recovered.items()):
        lines.append((models, {"linestyle": "-", "marker": MARKERS[turn % len(MARKERS)], "label": name}))
    for models, style in lines:
        if models:
            yield sorted(models.values(), key=lambda point: point.removed), {"color": colour} | style


def _draw(axes: Axes, points: Sequence[Point], shift: float, style: Mapping[str, Any]) -> None:
    ends = [point.interval or (point.perplexity, point.perplexity) for point in points]
    values = [point.perplexity for point in points]
    whiskers = [
        [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)],
        [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    places = [100 * point.removed + shift for point in points]
    axes.errorbar(places, values, yerr=whiskers, linewidth=1.6, elinewidth=1.1, markersize=5, **style)


def _written(value: float) -> bool:
    """Return whether the axis writes this value: the first digits 1, 2 and 5 are enough to read a log axis by."""
    return f"{value:e}"[0] in "125"

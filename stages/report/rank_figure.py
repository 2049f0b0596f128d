"""The picture of a sweep over ranks: each adapter at the shared rate and at its own rate, and what that rate is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from stages.report.figures import PALETTE, SERIES, STYLE, svg

MARKERS = "osD^vPX*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """An adapter at a rank, with one number a seed. An adapter that was not tuned has no tuned figures.

    Attributes:
        rank: the adapter's rank.
        shared: perplexity of the test rows at the shared rate; infinite where the recovery diverged.
        tuned: the same at the rate found for this adapter and rank.
        rates: the rates found.
    """

    rank: int
    shared: Sequence[float]
    tuned: Sequence[float]
    rates: Sequence[float]


def ranks_svg(adapters: Mapping[str, Sequence[Ranked]]) -> str:
    """Return test perplexity over rank at the shared and at the tuned rate, and the rates found, by adapter.

    Lines go through the means over seeds. Whiskers reach from the lowest seed to the highest.
    """
    ranks = sorted({point.rank for points in adapters.values() for point in points})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        shared, tuned, rates = figure.subplots(1, 3)
        tuned.sharey(shared)
        for place, (name, points) in enumerate(adapters.items()):
            style = {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)], "label": name}
            # Adapters stand slightly apart, so that their whiskers don't hide each other.
            shift = 2 ** (0.12 * (place - (len(adapters) - 1) / 2))
            _line(shared, [(shift * point.rank, point.shared) for point in points], style)
            _line(tuned, [(shift * point.rank, point.tuned) for point in points], style)
            _line(rates, [(shift * point.rank, point.rates) for point in points], style)
        for axes, title in ((shared, "one rate for all"), (tuned, "each at its own rate"), (rates, "the rate found")):
            _over_ranks(axes, title, ranks)
        shared.set_ylabel("test perplexity (less is better)")
        for axes in (shared, tuned):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.tick_params(axis="y", which="minor", labelsize=8, labelcolor=PALETTE["muted"])
        rates.set_yscale("log")
        rates.set_ylabel("learning rate")
        # An adapter that diverged at the shared rate has a line only in the other panels.
        handles = {
            name: handle
            for axes in (shared, tuned)
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        names = [name for name in adapters if name in handles]
        figure.legend([handles[name] for name in names], names, loc="outside upper left", ncols=8)
        return svg(figure, "ranks")


def _line(axes: Axes, points: Sequence[tuple[float, Sequence[float]]], style: dict[str, str]) -> None:
    seen = [(place, values) for place, values in points if values and max(values) < float("inf")]
    if not seen:
        return
    centres = [mean(values) for _, values in seen]
    low = [max(centre - min(values), 0.0) for centre, (_, values) in zip(centres, seen, strict=True)]
    high = [max(max(values) - centre, 0.0) for centre, (_, values) in zip(centres, seen, strict=True)]
    axes.errorbar([place for place, _ in seen], centres, yerr=[low, high], linewidth=1.6, markersize=5, **style)  # type: ignore[arg-type]


def _over_ranks(axes: Axes, title: str, ranks: Sequence[int]) -> None:
    axes.set_title(title, fontsize=10, color=PALETTE["ink"])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:g}"))
    axes.set_xlabel("rank")

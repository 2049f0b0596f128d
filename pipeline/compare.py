"""`python -m pipeline.compare [artifact_root=DIR] [output=FILE.html]`: all recoveries of a store side by side.

The command prints one table for each way of judging. It writes the same tables, under the overlaid recovery curves, to
one HTML file that opens offline. Runs that differ only in their seeds are also summed up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev

from pipeline.console.options import show
from pipeline.recoveries import Recovery, recoveries, seeds_apart
from stages.adapters.registry import ADAPTERS
from stages.common.files import write_text
from stages.report import wording as w
from stages.report.blocks import Block, Cell, Heading, Page, Paragraph, Picture, Table, html
from stages.report.sections.cells import share
from stages.report.sections.protocol import brief
from stages.report.summary import main_figures
from stages.stage import JSON

SETTING = ("model", "pruned by", "removed", "adapter", "data")
JUDGED = ("protocol", "tasks", "shots", "reference")
SCORES = (
    ("accuracy", "accuracy/recovered", w.percent),
    ("bits per byte", "bits_per_byte/recovered", w.bits),
    ("perplexity", "perplexity/mean/recovered", w.perplexity),
    ("of Wikipedia", "perplexity/recovered", w.perplexity),
    ("repeated 4-grams", "repeated/recovered", w.percent),
)
"""Scores of the recovered model: the column, the figure of the report, and how the figure is written."""
SHARES = (
    ("retained: accuracy", "retained", "accuracy", "retained"),
    ("recovered: accuracy", "recovered", "accuracy", "recovered"),
    ("recovered: bits per byte", "recovered/bits_per_byte", "bits_per_byte", "recovered"),
    ("recovered: perplexity", "recovered/perplexity/mean", "texts", "recovered"),
)
"""Shares of the reference: the column, the figure of the report, and the measure and effect that hold its interval."""
COLUMNS = ("run", *SETTING, "tokens", "reference", *(name for name, *_ in (*SCORES, *SHARES)), "parameters")
WORDS = ("model", "pruned by", "adapter", "data", *JUDGED)
"""Columns of words, which a terminal shows aligned to the left."""
CURVES = 24
"""At most this many curves in one picture; the table has every run."""


def table(group: Sequence[Recovery]) -> Table:
    """Return a table with one row a recovery. Shares that have a 95 % interval show it."""
    return Table(COLUMNS, [_row(one) for one in group], words=_words(COLUMNS))


def seeds_table(found: Sequence[Sequence[Recovery]]) -> Table | None:
    """Return one row for all runs that differ only in seeds: mean ± standard deviation. None without such runs."""
    rows = [_over_seeds(runs) for group in found for runs in seeds_apart(group)]
    columns = ("runs", *SETTING, *JUDGED, "seeds", *(name for name, *_ in (*SCORES, *SHARES)))
    return Table(columns, rows, words=_words(columns)) if rows else None


def text(table: Table) -> str:
    """Return a table as aligned text for a terminal."""
    cells = [[cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in row] for row in table.rows]
    rows = [list(table.columns), *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ["<" if place in (0, *table.words) else ">" for place in range(len(widths))]
    formats = [f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True)]
    return "\n".join("  ".join(map(str.format, formats, row)).rstrip() for row in rows)


def page(found: Sequence[Sequence[Recovery]], root: Path) -> Page:
    """Return the comparison page."""
    from stages.report.figures import curves_svg  # matplotlib, only where a picture is drawn

    everything = [one for group in found for one in group]
    blocks: list[Block] = [Heading("Recoveries side by side", 1), Paragraph(f"{len(everything)} in {root}", "note")]
    drawn = {label(one): one.report["curve"] for one in everything[:CURVES]}
    svg = curves_svg(drawn)
    if svg:
        more = f" The first {CURVES} of {len(everything)} runs." if len(everything) > CURVES else ""
        caption = f"Loss of rows held out from the recovery data, over tokens trained on.{more}"
        blocks += [Heading("Recovery curves"), Picture("curves.svg", svg, caption)]
    blocks.append(Heading("Results"))
    for group in found:
        blocks += [Heading(heading(group), 3), table(group)]
    blocks.append(
        Paragraph(
            "Accuracy, bits per byte, perplexity and repetition are the recovered model's. Perplexity is the mean over "
            "the kinds of text that nothing was fitted to; that of Wikipedia's passages stands beside it. Retained and "
            "recovered are measured against the reference in their row, with 95 % intervals over documents; where the "
            "loss is within noise there is no recovered share. Runs of different tables were judged differently: don't "
            "compare them.",
            "note",
        )
    )
    blocks += _warning(everything)
    seeds = seeds_table(found)
    if seeds:
        note = "Runs that differ in nothing but their seeds: mean ± standard deviation between the runs."
        blocks += [Heading("Over seeds"), seeds, Paragraph(note, "note")]
    return Page("Recoveries side by side", blocks, wide=True)


def heading(group: Sequence[Recovery]) -> str:
    """Return how a group was judged: the protocol, the tasks by name and the examples shown."""
    report = group[0].report
    protocol, tasks, shots = brief(report)
    if not report["protocol"]:
        return "Not judged"
    labels = [task["label"] for task in report["tasks"].values()]
    named = f" ({', '.join(labels)})" if len(labels) > 1 else ""
    examples = "" if shots == w.DASH else ", zero-shot" if shots == "0" else f", {shots} shots"
    return f"Judged by {protocol}, {tasks}{named}{examples}"


def label(one: Recovery) -> str:
    """Return a run's name in the picture: its number in the table, how it was pruned and how it was recovered."""
    report = one.report
    achieved = report["params"]["ratio_achieved"]
    removed = "" if achieved is None else f" −{w.percent(achieved, digits=0)}"
    return f"{one.number}  {report['model']}, {report['prune']}{removed}, {adapter_of(report)}"


def _warning(everything: Iterable[Recovery]) -> list[Block]:
    """Say which runs trained on judged tasks."""
    warned = [str(one.number) for one in everything if one.report["caution"]]
    if not warned:
        return []
    fitted = "trained on train splits of judged tasks: their accuracy and bits per byte mix recovery with task fitting."
    return [Paragraph(f"Run{'s' if len(warned) > 1 else ''} {w.listing(warned)} {fitted}", "caution")]


def _row(one: Recovery) -> list[Cell]:
    report, figures = one.report, main_figures(one.report)
    parameters = w.millions(report["params"]["recovered"] or report["params"]["pruned"])
    tokens = w.count(report["curve"][-1]["tokens"] if report["curve"] else None)
    scores: list[Cell] = [write(figures[figure]) for _, figure, write in SCORES]
    effects = {"texts": ((report["texts"] or {}).get("mean") or {}).get("log"), **(report["mean"] or {})}
    shares = [_share((effects.get(measure) or {}).get(effect)) for _, _, measure, effect in SHARES]
    return [str(one.number), *_setting(report), tokens, _reference(report), *scores, *shares, parameters]


def _over_seeds(runs: Sequence[Recovery]) -> list[Cell]:
    figures = [main_figures(one.report) for one in runs]
    columns = [*((figure, write) for _, figure, write in SCORES), *((figure, _whole) for _, figure, _, _ in SHARES)]
    numbers = w.listing([str(one.number) for one in runs])
    report = runs[0].report
    spread = [_spread([own[figure] for own in figures], write) for figure, write in columns]
    return [numbers, *_setting(report), *brief(report), _reference(report), str(len(runs)), *spread]


def _spread(values: Sequence[float | None], write: w.Write) -> Cell:
    """Return mean ± standard deviation. Where some runs lack the number, return how many have it."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return (w.DASH, f"{len(known)} of {len(values)} runs") if known else w.DASH
    return f"{write(mean(known))} ± {w.bare(write(stdev(known)))}"


def _setting(report: JSON) -> list[str]:
    achieved = w.percent(report["params"]["ratio_achieved"])
    return [report["model"], report["prune"], achieved, adapter_of(report), report["data"]]


def _reference(report: JSON) -> str:
    reference: str = report["reference"]
    return w.NAMES.get(reference, reference)


def adapter_of(report: JSON) -> str:
    """Return an adapter's name with its size. An adapter that this version does not know is shown without a size."""
    kind, given = ADAPTERS.get(report["adapter"]), report["configuration"]["recover"]["adapter"]
    size = []
    if kind is not None:
        # The store may hold a recovery of another version, whose adapter had other options.
        known = {field.name for field in fields(kind.config)}
        size.append(kind.label(kind.config(**{name: value for name, value in given.items() if name in known})))
    return " ".join([report["adapter"], *size, *(["tuned"] if report["training"].get("tuning") else [])])


def _words(columns: Sequence[str]) -> list[int]:
    return [place for place, name in enumerate(columns) if name in WORDS]


def _share(effect: JSON | None) -> Cell:
    """Return a share with its interval, or a dash. The run's own report says why a share is missing."""
    return share(effect) if effect and effect["value"] is not None else w.DASH


def _whole(value: float | None) -> str:
    return w.percent(value, digits=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write the page."""
    show("pipeline.compare", arguments, "outputs/compare.html", _show)


def _show(root: Path, output: Path) -> None:
    found = recoveries(root)
    print("\n\n".join(f"{heading(group)}\n{text(table(group))}" for group in found))
    seeds = seeds_table(found)
    if seeds:
        print(f"\nOver seeds: mean ± standard deviation\n{text(seeds)}")
    write_text(output, html(page(found, root)))
    print()


if __name__ == "__main__":
    main()

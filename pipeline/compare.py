"""`python -m pipeline.compare [artifact_root=DIR] [output=FILE.html]`: all recoveries of a store side by side.

A table on the terminal, and the same table under the overlaid recovery curves in one HTML file that opens offline.
Reads report artifacts only: their `report.json`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.store import MANIFEST, PARTIAL
from stages.errors import UserError
from stages.files import read_json, write_text
from stages.methods import nearest
from stages.report import wording as w
from stages.report.blocks import Cell, Heading, Page, Paragraph, Picture, Table, html
from stages.report.render import SCHEMA
from stages.stage import JSON

COLUMNS = (
    "run",
    "model",
    "pruned by",
    "removed",
    "adapter",
    "data",
    "tokens",
    "accuracy",
    "bits per byte",
    "perplexity",
    "recovered: accuracy",
    "recovered: bits per byte",
    "recovered: perplexity",
    "parameters",
)
WORDS = (1, 2, 4, 5)
CURVES = 24
"""At most this many curves in one picture; the table has every run."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One report of the store: its artifact's name and what report.json says."""

    name: str
    report: JSON


def recoveries(root: Path) -> list[Recovery]:
    """Return the complete reports in which something was recovered, those of one pruned model together.

    Raises:
        UserError: the store is missing or holds none; the message says how to make one.
    """
    found = sorted(_reports(root), key=lambda recovery: _order(recovery.report))
    if not found:
        raise UserError(
            f"no recoveries in {root}. Make one with: make recover (or python -m pipeline ratio=0.5 adapter=rora); "
            "if they are kept elsewhere, name the store: artifact_root=DIR."
        )
    return found


def table(found: Sequence[Recovery]) -> Table:
    """Return one row a recovery, with 95 % intervals where a share has one."""
    return Table(COLUMNS, [_row(number, one.report) for number, one in enumerate(found, start=1)], words=WORDS)


def text(table: Table) -> str:
    """Return a table as aligned text for a terminal."""
    cells = [[cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in row] for row in table.rows]
    rows = [list(table.columns), *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ["<" if place in (0, *table.words) else ">" for place in range(len(widths))]
    formats = [f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True)]
    return "\n".join("  ".join(map(str.format, formats, row)).rstrip() for row in rows)


def page(found: Sequence[Recovery], root: Path) -> Page:
    """Return the comparison page."""
    from stages.report.figures import curves_svg  # matplotlib, only where a picture is drawn

    blocks: list[Heading | Paragraph | Picture | Table] = [Heading("Recoveries side by side", 1)]
    blocks.append(Paragraph(f"{len(found)} in {root}", "note"))
    curves = {label(number, one.report): one.report["curve"] for number, one in enumerate(found, start=1)}
    drawn = dict(list(curves.items())[:CURVES])
    svg = curves_svg(drawn)
    if svg:
        more = f" The first {CURVES} of {len(curves)} runs." if len(curves) > CURVES else ""
        caption = f"Loss of rows held out from the recovery data, over tokens trained on.{more}"
        blocks += [Heading("Recovery curves"), Picture("curves.svg", svg, caption)]
    blocks += [Heading("Results"), table(found)]
    blocks.append(
        Paragraph(
            "Accuracy, bits per byte and perplexity are the recovered model's. Recovered is the share of what pruning "
            "lost, with its 95 % interval; where the loss is within noise there is no such number. Runs judged on "
            "other tasks or documents can't be compared: each run's report lists its own.",
            "note",
        )
    )
    warned = [number for number, one in enumerate(found, start=1) if one.report["caution"]]
    if warned:
        runs = f"Run{'s' if len(warned) > 1 else ''} {w.listing([str(number) for number in warned])}"
        fitted = (
            "trained on train splits of judged tasks: their accuracy and bits per byte mix recovery with task fitting."
        )
        blocks.append(Paragraph(f"{runs} {fitted}", "caution"))
    return Page("Recoveries side by side", blocks, wide=True)


def label(number: int, report: JSON) -> str:
    """Return a run's name in the picture: its row in the table, how it was pruned and recovered."""
    adapter = report["configuration"].get("recover", {}).get("adapter", {})
    rank = f" r{adapter['rank']}" if "rank" in adapter else ""
    achieved = report["params"]["ratio_achieved"]
    removed = "" if achieved is None else f" −{w.percent(achieved, digits=0)}"
    return f"{number}  {report['model']}, {report['prune']}{removed}, {report['adapter']}{rank}"


def _reports(root: Path) -> Iterator[Recovery]:
    for path in sorted((root / "report").glob("*/report.json")):
        directory = path.parent
        if directory.name.endswith(PARTIAL) or not (directory / MANIFEST).is_file():
            continue
        try:
            report = read_json(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if not isinstance(report, dict) or report.get("schema") != SCHEMA:
            print(f"left out: {path} was written by another version of this project.", file=sys.stderr)
        elif report["adapter"] != "none":
            yield Recovery(directory.name, report)


def _order(report: JSON) -> tuple[str, str, float, str, int, str]:
    settings = report["configuration"].get("recover", {})
    rank = settings.get("adapter", {}).get("rank", 0)
    removed = report["params"]["ratio_achieved"] or 0.0
    return (report["model"], report["prune"], removed, report["adapter"], rank, str(settings))


def _row(number: int, report: JSON) -> list[Cell]:
    settings = report["configuration"].get("recover", {})
    adapter = settings.get("adapter", {})
    average, held_out = report["mean"] or {}, report["perplexity"] or {}
    scores = average.get("recovered", {})
    parameters: Cell = w.millions(report["params"]["recovered"] or report["params"]["pruned"])
    return [
        str(number),
        report["model"],
        report["prune"],
        w.percent(report["params"]["ratio_achieved"]),
        f"{report['adapter']} r{adapter['rank']}" if "rank" in adapter else report["adapter"],
        report["data"],
        w.count(report["curve"][-1]["tokens"] if report["curve"] else None),
        w.percent(scores.get("acc")),
        w.bits(scores.get("bits_per_byte")),
        w.perplexity(held_out.get("recovered")),
        _part(average.get("accuracy")),
        _part(average.get("bits_per_byte")),
        _part(held_out.get("log")),
        parameters,
    ]


def _part(effects: JSON | None) -> Cell:
    """Return the recovered share with its interval, or a dash."""
    share = (effects or {}).get("recovered") or {}
    if share.get("value") is None:
        return w.DASH
    return (w.percent(share["value"], digits=0), w.span(share["interval"], lambda end: w.percent(end, digits=0)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the page."""
    options = {
        "artifact_root": os.environ.get("PRUNE_RECOVER_ARTIFACTS", "artifacts"),
        "output": "outputs/compare.html",
    }
    try:
        options |= _parse(sys.argv[1:] if arguments is None else arguments, options)
        root, output = (Path(options[name]).expanduser().resolve() for name in ("artifact_root", "output"))
        found = recoveries(root)
        print(text(table(found)))
        write_text(output, html(page(found, root)))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"\n{output}")


def _parse(arguments: Sequence[str], known: dict[str, str]) -> dict[str, str]:
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.removeprefix("runtime.")
        if name not in known or not equals or not value:
            raise UserError(
                f"'{argument}' is not an option{nearest(name, known)}. "
                "Usage: python -m pipeline.compare [artifact_root=DIR] [output=FILE.html]"
            )
        given[name] = value
    return given


if __name__ == "__main__":
    main()

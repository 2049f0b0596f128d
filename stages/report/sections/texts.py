"""The section on held-out text: the perplexity of each kind, and their mean."""

from __future__ import annotations

from collections.abc import Iterator

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Folded, Heading, Paragraph, Table
from stages.report.sections.cells import names, share, valued
from stages.report.verdict import label
from stages.stage import JSON

USES = {"chosen by": "defaults were chosen by it", "apart": "kept for final figures"}
"""What sets a kind apart from those in the mean, beside text of its kind being read."""
DIGITS = 12
"""Hex digits of a digest that are shown. report.json has all of them."""


def by_kind(report: JSON) -> Iterator[Block]:
    """Yield the table of the kinds of held-out text, the mean over those that count, and where the texts are from."""
    texts = report["texts"]
    if not texts:
        return
    average = texts["mean"]
    entries = [(kind, found) for kind, found in texts["kinds"].items()]
    models = [model for model in w.MODELS if model in entries[0][1]]
    rows: list[list[Cell]] = [
        [(label(texts, kind), _apart(found)), w.count(found["documents"]), *cells(found, models), came_back(found)]
        for kind, found in entries
    ]
    if average:
        count = len(average["over"])
        rows.append([f"mean of {count}", "", *cells(average, models), came_back(average)])
    yield Heading("Held-out text by kind")
    per_token = entries[0][1]["per"] == "token"
    yield Table(["kind", "passages", *names(models), "recovered share"], rows, last_apart=bool(average))
    measure = "Perplexity a token" if per_token else "Bits per byte"
    yield Paragraph(
        f"{measure}, each passage read alone; in brackets 95 % intervals from a paired bootstrap over passages. "
        f"{_of_mean(texts)}",
        "note",
    )
    for sentence in read_sentences(texts):
        yield Paragraph(sentence, "note")
    yield Folded("Where the texts came from", _sources(texts))


def cells(figures: JSON, models: list[str]) -> list[Cell]:
    """Return each model's perplexity with its interval; bits per byte where perplexities can't be compared."""
    if figures["per"] == "token":
        return [valued(figures.get(model), figures["intervals"].get(model), w.perplexity) for model in models]
    return [w.bits(figures["bits_per_byte"].get(model)) for model in models]


def came_back(figures: JSON) -> Cell:
    """Return the share of the loss that came back, on the scale of the logarithm."""
    return share(figures["log"].get("recovered"))


def read_sentences(texts: JSON) -> Iterator[str]:
    """Yield one sentence for each kind whose like the calibration or the recovery read."""
    for kind, found in texts["kinds"].items():
        if found["read_by"]:
            readers = w.listing([f"the {by}" for by in found["read_by"]])
            yield (
                f"{readers[0].upper()}{readers[1:]} read other text of the kind {label(texts, kind)}, which flatters "
                "the perplexity of that kind."
            )


def _of_mean(texts: JSON) -> str:
    if not texts["mean"]:
        return "There is no mean: no kind was scored that nothing was fitted to."
    over = w.listing([label(texts, kind) for kind in texts["mean"]["over"]])
    return (
        f"The mean is over the kinds that nothing was fitted to ({over}): neither the calibration nor the recovery nor "
        "a choice of defaults read text of them. It is taken of the logarithms, each kind counting once."
    )


def _apart(found: JSON) -> str:
    """Return why a kind is not in the mean, or ""."""
    if found["read_by"]:
        return f"read by {w.listing(found['read_by'])}"
    return USES.get(found["use"] or "", "" if found["use"] == "judged" else "beside the mean")


def _sources(texts: JSON) -> Table:
    rows: list[list[Cell]] = [
        [label(texts, kind), found["source"] or w.DASH, found["licence"] or w.DASH, (found["sha256"] or "")[:DIGITS]]
        for kind, found in texts["kinds"].items()
    ]
    return Table(["kind", "source", "licence of the data set", "SHA-256 of the texts"], rows, words=(1, 2, 3))

"""The section on the search for a learning rate: the rate that all adapters share, and the tuned one."""

from __future__ import annotations

from collections.abc import Iterator

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Heading, Paragraph, Table
from stages.stage import JSON

COLUMNS = ("learning rate", "", "validation loss", "test loss", "test perplexity")


def tuning(report: JSON) -> Iterator[Block]:
    """Yield the trials of a recovery whose rate was tuned; nothing for any other recovery."""
    found = report["training"].get("tuning")
    if not found:
        return
    trials = found["trials"]
    yield Heading("Learning rate: shared and tuned")
    yield Paragraph(
        f"{len(trials)} trials of {w.count(found['budget'])} tokens, {w.count(found['tokens'])} together, one at each "
        "rate. The lowest validation loss chose; the test rows were held out as well, and nothing was chosen by them. "
        "Losses are in nats a token.",
        "note",
    )
    yield Table(COLUMNS, [_row(entry, found) for entry in trials], words=(1,))
    if found["edge"]:
        yield Paragraph(
            f"The chosen rate is the {found['edge']} of the grid: a better one may lie beyond it. Widen "
            "recover.tune_factors.",
            "caution",
        )


def _row(entry: JSON, found: JSON) -> list[Cell]:
    rate, test = entry["learning_rate"], entry["test"] or {}
    roles = [role for role in ("shared", "chosen") if rate == found[role]]
    remark = " and ".join([*roles, *(["diverged"] if entry["diverged"] else [])])
    scores = [w.bits(entry["validation_loss"]), w.bits(test.get("loss")), w.perplexity(test.get("perplexity"))]
    return [f"{rate:g}", remark, *scores]

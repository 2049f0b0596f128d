"""The section on what the models write by themselves: repetition, agreement with the dense model, examples."""

from __future__ import annotations

from collections.abc import Iterator

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Heading, Paragraph, Table
from stages.report.sections.cells import difference, names, score
from stages.stage import JSON

COLUMNS = (
    "model",
    "repeated 4-grams",
    "points above dense",
    "end in a loop",
    "end by themselves",
    "tokens written",
    "same next token as dense",
    "tokens in common",
)


def generation(report: JSON) -> Iterator[Block]:
    """Yield the table of the models' greedy continuations, and a few of them side by side."""
    found = report.get("generation")  # a report of an earlier version has none
    if not found:
        return
    models = [model for model in w.MODELS if model in found]
    yield Heading("What the models write")
    yield Table(COLUMNS, [_row(found, model) for model in models])
    yield Paragraph(
        f"Greedy continuations of the beginnings of {found['prompts']} held-out passages, at most "
        f"{found['new_tokens']} tokens each. Repeated are the 4-grams that a continuation had before. A loop is a "
        "cycle that fills the end of a continuation. Same next token: at how many places of the passages' own text a "
        "model finds the token likeliest that the dense model does. In common: how many tokens the continuation and "
        "the dense model's begin with. In brackets 95 % intervals from a paired bootstrap over prompts; a star marks "
        "a clear difference.",
        "note",
    )
    yield Heading("The first continuations", 3)
    rows = [[_line(example[key]) for key in ("prompt", *models)] for example in found["examples"]]
    yield Table(["beginning", *names(models)], rows, words=range(len(models) + 1), prose=True)


def _row(found: JSON, model: str) -> list[Cell]:
    own, (name,) = found[model], names([model])
    return [
        name,
        score(found, model, "repeated", w.percent),
        difference(found["repeated"].get(f"{model}_minus_dense"), w.points),
        w.percent(own["loop"], digits=0),
        w.percent(own["ended"], digits=0),
        w.count(own["length"]),
        score(found, model, "agreement", w.percent),
        w.DASH if own.get("in_common") is None else f"{own['in_common']:.1f}",
    ]


def _line(text: str) -> str:
    """Return a text on one line, with its line breaks shown."""
    return " ".join(text.replace("\n", " ↵ ").split())

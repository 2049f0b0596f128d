"""The contents of a report and their order, as blocks, from `report.json` alone.

Both the artifact's report and the run directory's report are made here. The run's JSON has `stages` and `run` besides,
and its page has sections on them. No numpy and no matplotlib: pictures are passed in as they were drawn for the
artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stages.common.questions import ENOUGH, questions_behind
from stages.decoders.card import adapter_sizes, training_remarks
from stages.report import wording as w
from stages.report.blocks import Block, Cell, Heading, Page, Paragraph, Picture, Table
from stages.report.sections.cost import cost
from stages.report.sections.generation import generation
from stages.report.sections.protocol import judging
from stages.report.sections.protocol import sentence as protocol_sentence
from stages.report.sections.run import configuration, this_run
from stages.report.sections.scores import by_task, corpora, headline
from stages.report.sections.texts import by_kind
from stages.report.sections.tuning import tuning
from stages.report.summary import REFERENCES
from stages.stage import JSON

CAPTION = (
    "Recovery curve, over tokens trained on: loss of rows held out from the recovery data (dots) and of the rows "
    "trained on (line)"
)


def page(report: JSON, pictures: Mapping[str, str]) -> Page:
    """Return the page of a report. `pictures` are the SVGs that could be drawn, by name ("curve", "tasks")."""
    return Page(title(report), list(_blocks(report, pictures)))


def results(report: JSON) -> Page:
    """Return the report's part of a model's card: the clear findings, the table over all tasks, and the protocol."""
    blocks: list[Block] = [Paragraph(sentence) for sentence in report["summary"].splitlines()]
    blocks += [Paragraph(report["caution"], "caution")] if report["caution"] else []
    blocks += headline(report)
    if report["protocol"] and report["tasks"]:
        blocks.append(Paragraph(protocol_sentence(report)))
    return Page(title(report), [Heading("Results"), *blocks])


def title(report: JSON) -> str:
    """Return "Recovery of MODEL", or the same with what else was done to it."""
    if report["adapter"] != "none":
        return f"Recovery of {report['model']}"
    return f"Pruning of {report['model']}" if report["prune"] not in ("none", "sheared") else report["model"]


def settings(report: JSON) -> str:
    """Return one line of settings: how the model was pruned and recovered, and on which data."""
    ratio = report["params"]["ratio_requested"]
    channels = report["params"].get("channel_ratio")
    amount = f" channel_ratio={channels:g}" if channels is not None else f" ratio={ratio:g}" if ratio else ""
    parts = [f"prune={report['prune']}{amount}"]
    sizes = adapter_sizes(report["training"].get("adapter", {}))
    parts.append(f"adapter={report['adapter']}{f' ({sizes})' if sizes else ''}")
    if report["adapter"] != "none":
        parts.append(f"data={report['data']}")
    return " · ".join([*parts, f"reference: {REFERENCES.get(report['reference'], report['reference'])}"])


def _blocks(report: JSON, pictures: Mapping[str, str]) -> Iterator[Block]:
    yield Heading(title(report), 1)
    yield Paragraph(settings(report), "note")
    for sentence in report["summary"].splitlines():
        yield Paragraph(sentence, "lead")
    if report["caution"]:
        yield Paragraph(report["caution"], "caution")
    for note in report["notes"]:
        yield Paragraph(note, "note")
    yield from headline(report)
    yield from judging(report)
    if "curve" in pictures:
        yield Heading("Recovery curve")
        yield Picture("curve.svg", pictures["curve"], _caption(report["training"]))
        yield from _training(report["training"], report["configuration"].get("recover", {}).get("recover", {}))
    yield from tuning(report)
    yield from by_kind(report)
    yield from by_task(report, pictures)
    yield from corpora(report)
    yield from generation(report)
    yield from cost(report)
    yield from this_run(report)
    yield from configuration(report)


def _caption(training: JSON) -> str:
    questions = questions_behind(training)
    followed = f"; beside it, scores on the {w.count(questions)} of the held-out rows that are questions"
    return f"{CAPTION}{followed if questions >= ENOUGH else ''}."


HELD_OUT = ("held-out rows of the recovery data", "loss before", "after", "perplexity before", "after")


def _held_out(validation: JSON, test: JSON | None) -> Iterator[Sequence[Cell]]:
    """Yield the rows that the curve measured, and the test rows, which were scored once after the training."""
    losses = [w.bits(validation[f"{when}_loss"]) for when in ("initial", "final")]
    yield ["validation", *losses, *(w.perplexity(validation[f"{when}_perplexity"]) for when in ("initial", "final"))]
    if test:
        yield ["test", w.bits(None), w.bits(test["loss"]), w.perplexity(None), w.perplexity(test["perplexity"])]


def _training(training: JSON, options: JSON) -> Iterator[Block]:
    """Yield what the training did, from recovery.json, and the recovery's options that decided it."""
    parameters, seen = training.get("parameters"), training.get("training")
    if held_out := training.get("validation"):
        yield Table(HELD_OUT, list(_held_out(held_out, training.get("test"))))
    if parameters and seen:
        yield Paragraph(
            f"{w.millions(parameters['trainable'])} parameters trained beside the model's "
            f"{w.millions(parameters['model'])}, on {w.count(seen['tokens'])} tokens of {w.count(seen['rows'])} rows "
            f"({seen['epochs']:.2g} epochs) in {w.count(seen['steps'])} step{'s' * (seen['steps'] != 1)}.",
            "note",
        )
    if options:
        merged = {True: "; the adapter is merged into model/", False: "; the adapter is not merged"}
        yield Paragraph(
            f"Peak learning rate {options['learning_rate']:g}, objective {options['objective'].replace('_', ' ')}, "
            f"loss on {'all tokens' if options['loss'] == 'all' else 'the response'}, {options['keep']} parameters kept"
            f"{merged.get(training.get('adapter', {}).get('merged'), '')}.",
            "note",
        )
    for remark in training_remarks(training):
        yield Paragraph(remark, "note")

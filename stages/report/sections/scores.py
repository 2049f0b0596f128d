"""The sections on quality: the loss and what came back, over everything and by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Folded, Heading, Paragraph, Picture, Table
from stages.report.sections.cells import difference, names, score, share, valued
from stages.report.sections.texts import came_back, cells
from stages.report.summary import QUESTIONS
from stages.report.verdict import label as label_of
from stages.stage import JSON

SOMETIMES = ("dense_recovered", "quantised")
"""Models that have a column only where they were judged."""
CAPTION = (
    "By task, with 95 % intervals: accuracy (the dark tick is chance), and where the task has it bits per byte of the "
    "right answer."
)


def headline(report: JSON) -> Iterator[Block]:
    """Yield the table over everything that was judged, and the question that its shares answer."""
    average = report["mean"]
    models = [model for model in w.MODELS if model not in SOMETIMES or _is_judged(report, model)]
    rows: list[list[Cell]] = []
    for figures, remark in _of_text(report["texts"]) if report["texts"] else ():
        name = "held-out perplexity" if figures["per"] == "token" else "bits per byte, held-out text"
        rows.append([(name, remark), *cells(figures, models), w.DASH, came_back(figures)])
    for title, key, effects, write in _means(average) if average else ():
        scores = [score(average, model, key, write) for model in models]
        changes = average[effects]
        rows.append([title, *scores, share(changes.get("retained")), share(changes.get("recovered"))])
    if not rows:
        return
    reference = w.NAMES.get(report["reference"], "dense")
    yield Heading("What was lost, and what came back")
    yield Table(["", *names(models), "retained", "recovered share"], rows)
    yield Paragraph(
        f"In brackets 95 % intervals, those of shares from a paired bootstrap over documents. Retained is recovered ÷ "
        f"{reference}. The recovered share is (recovered − pruned) ÷ ({reference} − pruned), of perplexity in its "
        "logarithm; where the loss is within noise there is no such number.",
        "note",
    )
    if report["reference"] in QUESTIONS:
        yield Paragraph(QUESTIONS[report["reference"]], "note")


def by_task(report: JSON, pictures: Mapping[str, str]) -> Iterator[Block]:
    """Yield the picture and the tables of every score by task, and the differences between the models."""
    if not report["tasks"]:
        return
    yield Heading("By task")
    if "tasks" in pictures:
        yield Picture("tasks.svg", pictures["tasks"], CAPTION)
    yield Heading("Accuracy" if report["mean"]["metric"] == "acc" else "Score of each task", 3)
    yield _score_table(report, "acc", w.percent)
    yield Paragraph(
        "± is the standard error. The mean is over tasks, each counting once, and its interval that of the mean.",
        "note",
    )
    yield from _unparsed(report)
    yield from _accuracy_differences(report)
    for title, key, write in (
        ("Accuracy above chance, (accuracy − chance) ÷ (1 − chance)", "above_chance", w.percent),
        ("Accuracy by length-normalised likelihood (acc_norm)", "acc_norm", w.percent),
        ("Bits per byte of the right answer", "bits_per_byte", w.bits),
    ):
        if report["mean"]["counts"][key]:
            yield Heading(title, 3)
            yield _score_table(report, key, write)
    for title, key, write in (
        ("Differences in acc_norm, in points", "acc_norm", w.points),
        ("Differences in bits per byte", "bits_per_byte", w.bits),
    ):
        if report["mean"][w.EFFECTS[key]]:
            yield Folded(title, _difference_table(report, key, write))


def corpora(report: JSON) -> Iterator[Block]:
    """Yield the perplexities of corpora, where any were asked for."""
    if not report["corpora"]:
        return
    models = [model for model in w.MODELS if model in report["corpora"][0]]
    rows: list[list[Cell]] = []
    for entry in report["corpora"]:
        cells = [valued(entry[model], entry["intervals"].get(model), w.perplexity) for model in models]
        windows = w.count(entry["windows"])
        rows.append([entry["corpus"], w.count(entry["length"]), windows, *cells, share(entry["log"].get("recovered"))])
    yield Heading("Perplexity of corpora")
    yield Table(["corpus", "tokens a window", "windows", *names(models), "recovered share"], rows)
    yield Paragraph(
        "Perplexity a token, the text joined and cut into windows that are read alone. Intervals from a paired "
        "bootstrap over windows, of the logarithm; windows of one article are alike, which makes them a little narrow.",
        "note",
    )


def _of_text(texts: JSON) -> Iterator[tuple[JSON, str]]:
    """Yield the headline's rows on held-out text, figures and remark: the mean over kinds, and Wikipedia beside it."""
    if texts["mean"]:
        yield texts["mean"], f"mean of {w.listing([label_of(texts, kind) for kind in texts['mean']['over']])}"
    if "wikipedia" in texts["kinds"]:
        yield texts["kinds"]["wikipedia"], label_of(texts, "wikipedia")


def _means(average: JSON) -> Iterator[tuple[Cell, str, str, w.Write]]:
    """Yield the headline's rows that average over tasks: label, score, effects, and how the score is written."""
    name = "accuracy" if average["metric"] == "acc" else "score"
    if average["counts"]["bits_per_byte"]:
        yield _partly("bits per byte, mean", "", average, "bits_per_byte"), "bits_per_byte", "bits_per_byte", w.bits
    chance = f"chance {w.percent(average['chance'])}" if average["chance"] is not None else ""
    yield (f"{name}, mean", chance), "acc", "accuracy", w.percent
    if average["counts"]["above_chance"]:
        label = _partly(f"{name} above chance, mean", "", average, "above_chance")
        yield label, "above_chance", "above_chance", w.percent


def _partly(label: str, remark: str, average: JSON, key: str) -> Cell:
    """Return the label, with the number of tasks that a mean is over where that is not all of them."""
    having, all_of_them = average["counts"][key], average["counts"]["acc"]
    return (label, remark if having == all_of_them else f"{having} of {all_of_them} tasks")


def _score_table(report: JSON, key: str, write: w.Write) -> Table:
    """Return one row for each task that has the score, then the row of their mean."""
    models, entries = _models(report), _with_mean(report, key)
    shares = {"retained": "retained", "recovered": "recovered share"}
    if key == "bits_per_byte":
        del shares["retained"]
    rows: list[list[Cell]] = []
    for label, entry in entries:
        cells = [score(entry, model, key, write, error=True) for model in models]
        rows.append([label, *cells, *(share(entry[w.EFFECTS[key]].get(name)) for name in shares)])
    columns = ["task", *names(models), *shares.values()]
    if key == "acc":
        columns[1:1] = ["documents", "chance"]
        for row, (label, entry) in zip(rows, entries, strict=True):
            row[:1] = [(label, _metric(entry)), w.count(entry[models[0]]["n"]), w.percent(entry["chance"])]
    return Table(columns, rows, last_apart=len(entries) > 1)


def _models(report: JSON) -> list[str]:
    return [model for model in w.MODELS if model in report["mean"]]


def _with_mean(report: JSON, key: str) -> list[tuple[str, JSON]]:
    """Return (label, entry) of the tasks that have a score and, where there are several, of their mean."""
    first = _models(report)[0]
    entries = [(entry["label"], entry) for entry in report["tasks"].values() if entry[first][key] is not None]
    return [*entries, (f"mean of {len(entries)}", report["mean"])] if len(entries) > 1 else entries


def _metric(entry: JSON) -> str:
    """Return the name of a task's metric where it is not plain accuracy."""
    return entry["metric"] if "label" in entry and entry["metric"] not in ("acc", None) else ""


def _accuracy_differences(report: JSON) -> Iterator[Block]:
    if not report["mean"]["accuracy"]:
        return
    yield Heading("Differences in accuracy, in points", 3)
    yield _difference_table(report, "acc", w.points)
    yield Paragraph(
        "p is McNemar's exact test on the documents that one model has right and the other wrong; for the mean, on the "
        "documents of all tasks. A star marks what both p < 0.05 and the 95 % interval of the difference find. Each "
        "row is another chance of a false star: the sentences at the top rest on the means alone.",
        "note",
    )


def _difference_table(report: JSON, key: str, write: w.Write) -> Table:
    entries, effects = _with_mean(report, key), w.EFFECTS[key]
    pairs = [pair for pair in report["mean"][effects] if "_minus_" in pair]
    rows: list[list[Cell]] = [
        [label, *(difference(entry[effects].get(pair), write) for pair in pairs)] for label, entry in entries
    ]
    heads = [" − ".join(names(pair.split("_minus_"))) for pair in pairs]
    return Table(["task", *heads], rows, last_apart=len(entries) > 1)


def _unparsed(report: JSON) -> Iterator[Block]:
    """Yield the share of generated answers that no pattern could read."""
    models, entries = _models(report), _with_mean(report, "acc")
    if any(entry[models[0]]["unparsed"] is None for _, entry in entries):
        return
    rows = [[label, *(w.percent(entry[model]["unparsed"]) for model in models)] for label, entry in entries]
    yield Heading("Answers that could not be read", 3)
    yield Table(["task", *names(models)], rows, last_apart=len(entries) > 1)
    yield Paragraph("No pattern of the protocol matches them; they count as wrong above.", "note")


def _is_judged(report: JSON, model: str) -> bool:
    texts = (report["texts"] or {}).get("kinds", {}).values()
    return model in (report["mean"] or {}) or any(model in found for found in texts)

"""What a report says, as blocks, from `report.json` alone.

The artifact's report and the run directory's come from here: the latter's JSON has `stages` and `run` as well, and its
page the sections on them. No numpy and no matplotlib: the pictures are handed in as drawn when the artifact was built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Folded, Heading, Page, Paragraph, Picture, Table
from stages.report.summary import REFERENCES
from stages.stage import JSON

CAPTIONS = {
    "curve": "Recovery curve: loss of rows held out from the recovery data (dots) and of the rows trained on (line), "
    "over tokens trained on.",
    "tasks": "By task, with 95 % intervals: accuracy (left; the dark tick is chance) and bits per byte of the right "
    "answer (right).",
}

COSTS = (
    ("parameters", "parameters", w.count),
    ("nonzeros", "not zero", w.count),
    ("multiply_accumulates", "MACs a token", w.millions),
    ("bytes", "on disk", w.megabytes),
    ("prefill_seconds", "prompt", w.milliseconds),
    ("decode_seconds", "each new token", w.milliseconds),
    ("peak_memory_bytes", "peak memory", w.megabytes),
    ("peak_device_memory_bytes", "peak memory of the device", w.megabytes),
)
"""Fields of a model's entry in `cost.json`, their column and how they are written."""


def page(report: JSON, pictures: Mapping[str, str]) -> Page:
    """Return the page of a report; `pictures` are the SVGs by name ("curve", "tasks"), those that could be drawn."""
    return Page(title(report), list(_blocks(report, pictures)))


def title(report: JSON) -> str:
    """Return "Recovery of MODEL", or what else was done to it."""
    if report["adapter"] != "none":
        return f"Recovery of {report['model']}"
    return f"Pruning of {report['model']}" if report["prune"] not in ("none", "sheared") else report["model"]


def settings(report: JSON) -> str:
    """Return one line of what was done: how it was pruned, recovered, and on what."""
    ratio = report["params"]["ratio_requested"]
    channels = report["params"].get("channel_ratio")
    amount = f" channel_ratio={channels:g}" if channels is not None else f" ratio={ratio:g}" if ratio else ""
    parts = [f"prune={report['prune']}{amount}"]
    adapter = report["configuration"].get("recover", {}).get("adapter", {})
    rank = f" (rank {adapter['rank']}, alpha {adapter['alpha']:g})" if adapter else ""
    parts.append(f"adapter={report['adapter']}{rank}")
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
    yield from _headline(report)
    if "curve" in pictures:
        yield Heading("Recovery curve")
        yield Picture("curve.svg", pictures["curve"], CAPTIONS["curve"])
        yield from _training(report["training"])
    if report["tasks"]:
        yield from _tasks(report, pictures)
    yield from _cost(report)
    yield from _run(report)
    yield Heading("Configuration")
    yield Folded("The configuration of every stage", _json(report["configuration"]))


def _headline(report: JSON) -> Iterator[Block]:
    rows: list[list[Cell]] = []
    held_out, average = report["perplexity"], report["mean"]
    if held_out:
        per_token = held_out["per"] == "token"
        name, write = ("held-out perplexity", w.perplexity) if per_token else ("bits per byte, held-out text", w.bits)
        values, ends = (held_out, held_out["intervals"]) if per_token else (held_out["bits_per_byte"], {})
        cells = [_with_interval(values.get(model), ends.get(model), write) for model in w.MODELS]
        rows.append([name, *cells, w.DASH, _part(held_out["log"].get("recovered"))])
    if average:
        bits = [_score(average, model, "bits_per_byte", w.bits) for model in w.MODELS]
        rows.append(["bits per byte, mean", *bits, w.DASH, _part(average["bits_per_byte"].get("recovered"))])
        hits = [_score(average, model, "acc", w.percent) for model in w.MODELS]
        kept = _part(average["accuracy"].get("retained"))
        chance = f"chance {w.percent(average['chance'])}"
        rows.append([("accuracy, mean", chance), *hits, kept, _part(average["accuracy"].get("recovered"))])
    if not rows:
        return
    yield Heading("What was lost, and what came back")
    yield Table(["", *w.MODELS, "retained", "recovered share"], rows)
    yield Paragraph(
        "In brackets 95 % intervals from a paired bootstrap over documents. Retained is recovered ÷ dense. The "
        "recovered share is (recovered − pruned) ÷ (dense − pruned), of perplexity in its logarithm; where the loss is "
        "within noise there is no such number.",
        "note",
    )


def _training(training: JSON) -> Iterator[Block]:
    """Yield what was trained on how much, as recovery.json counts it."""
    parameters, seen = training.get("parameters"), training.get("training")
    if parameters and seen:
        yield Paragraph(
            f"{w.millions(parameters['trainable'])} parameters trained beside the model's "
            f"{w.millions(parameters['model'])}, on {w.count(seen['tokens'])} tokens of {w.count(seen['rows'])} rows "
            f"({seen['epochs']:.2g} epochs) in {w.count(seen['steps'])} steps.",
            "note",
        )


def _tasks(report: JSON, pictures: Mapping[str, str]) -> Iterator[Block]:
    tasks, average = report["tasks"], report["mean"]
    yield Heading("By task")
    if "tasks" in pictures:
        yield Picture("tasks.svg", pictures["tasks"], CAPTIONS["tasks"])
    several = len(tasks) > 1
    entries = [*tasks.values(), *([average | {"label": "mean"}] if several else [])]
    present = [model for model in w.MODELS if model in average]
    yield Heading("Accuracy", 3)
    rows: list[list[Cell]] = []
    for entry in entries:
        cells = [_score(entry, model, "acc", w.percent) for model in present]
        effects = entry["accuracy"]
        count = w.count(entry[present[0]]["n"])
        shares = [_part(effects.get("retained")), _part(effects.get("recovered"))]
        rows.append([entry["label"], count, w.percent(entry["chance"]), *cells, *shares])
    yield Table(["task", "documents", "chance", *present, "retained", "recovered share"], rows, last_apart=several)
    yield Heading("Accuracy by length-normalised likelihood", 3)
    named = [(entry["label"], [entry[model].get("acc_norm") for model in present]) for entry in tasks.values()]
    yield Table(["task", *present], [[label, *map(w.percent, values)] for label, values in named])
    yield Paragraph("lm-eval's acc_norm; a dash where a task does not define it.", "note")
    yield Heading("Bits per byte of the right answer", 3)
    rows = []
    for entry in entries:
        cells = [_score(entry, model, "bits_per_byte", w.bits) for model in present]
        rows.append([entry["label"], *cells, _part(entry["bits_per_byte"].get("recovered"))])
    yield Table(["task", *present, "recovered share"], rows, last_apart=several)


def _cost(report: JSON) -> Iterator[Block]:
    cost = report["cost"]
    models = {model: cost["models"][model] for model in w.MODELS if model in cost.get("models", {})}
    if not models:
        return
    known = {key for entry in models.values() for key, value in entry.items() if value is not None}
    columns = [(key, label, write) for key, label, write in COSTS if key in known]
    yield Heading("Size and running cost")
    rows = [[model, *(write(entry.get(key)) for key, _, write in columns)] for model, entry in models.items()]
    yield Table(["model", *(label for _, label, _ in columns)], rows)
    hardware = cost["hardware"]
    yield Paragraph(
        f"Measured on {hardware['device']} ({hardware['cores']} cores) in {cost['dtype']}, the models in turns: a "
        f"prompt of {cost['prompt_tokens']} tokens, then {cost['new_tokens']} new ones; medians of {cost['repeats']}. "
        f"{cost.get('note', '')}".strip(),
        "note",
    )


def _run(report: JSON) -> Iterator[Block]:
    """Yield what belongs to one run and not to the artifact: stages, versions, hardware, commit."""
    if "stages" not in report:
        return
    yield Heading("This run")
    rows = [
        [
            stage["name"],
            str(stage["key"])[:16],
            stage["status"],
            w.seconds(stage.get("seconds")),
            w.megabytes(stage.get("peak_memory_bytes")),
        ]
        for stage in report["stages"]
    ]
    yield Table(["stage", "key", "status", "time", "peak memory of the stage alone"], rows, words=(1, 2))
    facts = report.get("run", {})
    named = (("command", "Command"), ("started", "Started"), ("commit", "Commit"))
    lines = [f"{label}: {facts[name]}" for name, label in named if facts.get(name)]
    if facts.get("hardware"):
        lines.append("Hardware: " + ", ".join(f"{name} {value}" for name, value in facts["hardware"].items()))
    for line in lines:
        yield Paragraph(line, "note")
    drift = {name: change for stage in report["stages"] for name, change in (stage.get("drift") or {}).items()}
    if drift:
        changes = "; ".join(f"{name} {then}, now {now}" for name, (then, now) in sorted(drift.items()))
        yield Paragraph(f"Parts from the store were built by other versions than this run's: {changes}.", "note")
    if facts.get("versions"):
        yield Folded("Package versions", _json(facts["versions"]))


def _score(entry: JSON, model: str, key: str, write: w.Write) -> Cell:
    scores = entry.get(model)
    return _with_interval(scores[key], scores.get(f"{key}_interval"), write) if scores else w.DASH


def _with_interval(value: float | None, interval: list[float] | None, write: w.Write) -> Cell:
    return (write(value), w.span(interval, write))


def _part(effect: JSON | None) -> Cell:
    """A share with its interval, or the reason why there is none."""
    if effect is None:
        return w.DASH
    if effect["value"] is None:
        return (w.DASH, effect["reason"])
    return (w.percent(effect["value"], digits=0), w.span(effect["interval"], lambda end: w.percent(end, digits=0)))


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)

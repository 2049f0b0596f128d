"""The section on size and running cost, as the cost stage measured them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Heading, Paragraph, Table
from stages.report.sections.cells import valued
from stages.stage import JSON

SIZES = (
    ("parameters", "parameters", w.count),
    ("nonzeros", "not zero", w.count),
    ("multiply_accumulates", "MACs a token", w.millions),
    ("bytes", "on disk", w.megabytes),
    ("peak_memory_bytes", "peak memory", w.megabytes),
    ("peak_device_memory_bytes", "peak memory of the device", w.megabytes),
)
"""Fields of a model's entry in `cost.json`, with their columns and how they are written."""
ROUNDED = "pruned, widths rounded"
"""What the row of the model with rounded widths is called. Its weights are random: only its time counts."""
PHASES = {"prefill": "reading", "decode": "writing"}
"""What a model does in each phase that is timed."""


def cost(report: JSON) -> Iterator[Block]:
    """Yield the models' sizes, and how fast the models read and write."""
    measured = report["cost"]
    models = {model: measured["models"][model] for model in w.MODELS if model in measured.get("models", {})}
    if not models:
        return
    if report.get("quantisation"):
        models["quantised"] = {"bytes": report["quantisation"]["bytes"]["after"]}
    known = {key for entry in models.values() for key, value in entry.items() if value is not None}
    columns = [(key, label, write) for key, label, write in SIZES if key in known]
    yield Heading("Size and running cost")
    sizes = [[model, *(write(entry.get(key)) for key, _, write in columns)] for model, entry in models.items()]
    yield Table(["model", *(label for _, label, _ in columns)], sizes)
    timed = models | ({ROUNDED: measured["rounded"]} if measured.get("rounded") else {})
    rows = [_latency(model, timing) for model, entry in timed.items() for timing in entry.get("latency") or []]
    if rows:
        yield Heading("Time", 3)
        heads = ["model", "prompts at once", "prompt", "× dense", "each step", "× dense", "new tokens a second"]
        yield Table(heads, sorted(rows, key=lambda row: int(str(row[1]))))
        yield from _bought(measured, models)
    hardware, note = measured["hardware"], measured.get("note")
    turns = note or "Ratios are taken within a turn, so what slows the machine for a while cancels out."
    yield Paragraph(
        f"Measured on {hardware['device']} ({hardware['cores']} cores) in {measured['dtype']}, the models in turns: "
        f"a prompt is {measured['prompt_tokens']} tokens, a step one new token of every prompt, of which "
        f"{measured['new_tokens']} are taken; medians of {measured['repeats']} turns with their range. {turns}",
        "note",
    )


def _bought(measured: JSON, models: JSON) -> Iterator[Block]:
    """Yield what the cut bought in time, what rounded widths would, and a caution where it cost time."""
    name = "recovered" if "recovered" in models else "pruned"
    if "dense" not in models or name not in models:
        return
    last, found = models[name], [timing for timing in models[name].get("latency") or [] if timing.get("decode_ratio")]
    if not found:
        return
    work = last["multiply_accumulates"] / models["dense"]["multiply_accumulates"]
    told = f"The {name} model has {w.times(work)} the dense model's multiply-accumulates. {_ratios(found).capitalize()}"
    if measured.get("rounded"):
        told += (
            f" With widths rounded to multiples of 64 (prune.round_to=64): {_ratios(measured['rounded']['latency'])}"
        )
    yield Paragraph(told)
    slower = [
        f"{does} {_at(timing)} takes {w.times(timing[f'{phase}_ratio'])} the dense model's time"
        for timing in found
        for phase, does in PHASES.items()
        if timing[f"{phase}_ratio_range"][0] > 1
    ]
    if slower:
        remedy = (
            "Small models gain least from narrower layers; fewer layers are faster anywhere (prune=block_influence)."
        )
        listed = "; ".join(slower)
        yield Paragraph(f"The {name} model is slower than the dense one here: {listed}. {remedy}", "caution")


def _ratios(latencies: Sequence[JSON]) -> str:
    told = [
        f"reading {_at(timing)} takes {_ratio(timing, 'prefill')} the time, writing {_ratio(timing, 'decode')}"
        for timing in latencies
    ]
    return f"{'; '.join(told)}."


def _ratio(timing: JSON, phase: str) -> str:
    return f"{w.times(timing[f'{phase}_ratio'])} {w.span(timing[f'{phase}_ratio_range'], w.times)}"


def _at(timing: JSON) -> str:
    return f"{timing['batch']} prompts at once" if timing["batch"] > 1 else "one prompt"


def _latency(model: str, timing: JSON) -> list[Cell]:
    row: list[Cell] = [model, str(timing["batch"])]
    for phase in ("prefill", "decode"):
        seconds, ratio = f"{phase}_seconds", f"{phase}_ratio"
        row.append(valued(timing.get(seconds), timing.get(f"{seconds}_range"), w.milliseconds))
        row.append(valued(timing.get(ratio), timing.get(f"{ratio}_range"), w.times))
    return [*row, w.count(timing.get("tokens_per_second"))]

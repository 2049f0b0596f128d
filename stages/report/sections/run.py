"""The section on one run, which only the run directory's report has, and the configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator

from stages.report import wording as w
from stages.report.blocks import Block, Folded, Heading, Paragraph, Table
from stages.stage import JSON


def this_run(report: JSON) -> Iterator[Block]:
    """Yield stages, versions, hardware and commit, where the report is that of a run."""
    if "stages" not in report:
        return
    yield Heading("This run")
    on_device = any(stage.get("peak_device_memory_bytes") for stage in report["stages"])
    rows = [
        [
            stage["name"],
            str(stage["key"])[:16],
            stage["status"],
            w.seconds(stage.get("seconds")),
            w.megabytes(stage.get("peak_memory_bytes")),
            *([w.megabytes(stage.get("peak_device_memory_bytes"))] if on_device else []),
        ]
        for stage in report["stages"]
    ]
    titles = ["stage", "key", "status", "time", "peak memory of the stage alone"]
    yield Table(titles + ["on the GPU"] * on_device, rows, words=(1, 2))
    for stage in report["stages"]:
        if stage.get("peaks"):
            yield Paragraph(f"Peak memory of the processes of {stage['name']}: {_peaks(stage['peaks'])}.", "note")
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
        yield Folded("Package versions", verbatim(facts["versions"]))


def _peaks(peaks: JSON) -> str:
    """Return what each process held at most, and what each of its GPUs did."""
    return "; ".join(
        f"{name} {', '.join([w.megabytes(own['memory_bytes']), *_on_cards(own['device_memory_bytes'])])}"
        for name, own in peaks.items()
    )


def _on_cards(cards: JSON) -> list[str]:
    return [f"{w.megabytes(most)} on {card}" for card, most in cards.items()]


def configuration(report: JSON) -> Iterator[Block]:
    """Yield the configuration of every stage, folded."""
    yield Heading("Configuration")
    yield Folded("The configuration of every stage", verbatim(report["configuration"]))


def verbatim(value: object) -> str:
    """Return a value as JSON for reading."""
    return json.dumps(value, indent=1, ensure_ascii=False)

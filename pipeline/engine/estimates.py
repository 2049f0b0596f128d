"""The seconds that the stages of a plan will take: from earlier runs of the same machine, else from its speed.

A manifest keeps the work of its stage with the seconds and the machine (`timing`). A stage of the same kind and about
as much work is the best measure. Without one, the speed of the machine's matrix products is (`pipeline.planning.speed`)
with the efficiency that the stage had where it was measured. GPUs are left out: most of a small model's time there is
not in the products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engine.store import Store
from pipeline.planning.graph import Node
from pipeline.planning.speed import Speed
from stages.decoders.work import Work

WORTH_MEASURING = 1e12
"""Operations from which a run is timed: less takes seconds on one core of any machine."""
ALIKE = 10.0
"""Largest ratio of two stages' work at which one is a measure of the other."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected seconds of the stages that a run will build, by key, and of all of these together.

    Attributes:
        seconds: of each stage whose work and speed are known.
        unknown: precisions whose speed is not known, and that a stage to be built needs.
    """

    seconds: Mapping[str, float]
    unknown: frozenset[str]


def estimate(due: Sequence[Node], works: Mapping[str, Work], store: Store, speed: Speed) -> Estimate:
    """Return what is expected of the stages `due`, those that a run will build."""
    counted = [(node, works[node.key]) for node in due if node.key in works]
    if sum(work.total / work.efficiency for _, work in counted) < WORTH_MEASURING:
        return Estimate({}, frozenset())
    seconds: dict[str, float] = {}
    unknown: set[str] = set()
    for node, work in counted:
        earlier = _earlier(store, node.stage.name, work, speed.machine)
        if earlier is not None:
            seconds[node.key] = earlier
        elif missing := work.operations.keys() - speed.rates.keys():
            unknown |= missing
        else:
            seconds[node.key] = work.seconds(speed.rates)
    return Estimate(seconds, frozenset(unknown))


def timing(work: Work, machine: str, seconds: float) -> dict[str, Any]:
    """Return what a manifest keeps of a stage's time. It is no part of the artifact's key or digest."""
    return {
        "machine": machine,
        "kind": work.kind,
        "operations": dict(work.operations),
        "seconds": round(seconds, 3),
    }


def about(seconds: float) -> str:
    """Return a duration as a plan tells it: no finer than it is known."""
    if seconds < 10:
        return "seconds"
    if seconds < 55:
        return f"about {math.ceil(seconds / 10) * 10} s"
    if seconds < 100 * 60:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"


def _earlier(store: Store, stage: str, work: Work, machine: str) -> float | None:
    """Return the time of the stage in the store that is most like `work`, scaled; None where none is like it."""
    found: list[tuple[float, str, float]] = []
    for artifact in store.artifacts(stage):
        kept = artifact.manifest.get("timing")
        if not kept or (kept["machine"], kept["kind"]) != (machine, work.kind):
            continue
        # Work in other precisions is no measure of this one.
        if kept["operations"].keys() == work.operations.keys() and work.total:
            ratio = work.total / sum(kept["operations"].values())
            # The name breaks ties, so that the answer does not depend on the file system's order.
            found.append((max(ratio, 1 / ratio), artifact.name, kept["seconds"] * ratio))
    ratio, _, seconds = min(found, default=(math.inf, "", 0.0))
    return seconds if ratio <= ALIKE else None

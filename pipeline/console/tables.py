"""Tables of the plan and of the store as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.engine.engine import MISSING, Engine
from pipeline.engine.estimates import about
from pipeline.planning.graph import Graph, Node
from stages.common.checks import short
from stages.common.tables import aligned

DIGITS = 12
"""Hex digits of a key that are shown."""
TOLD = 3
"""At most so many differences of two artifacts are told; with more, they are not compared in a plan."""


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as left-aligned columns, two spaces apart."""
    return "\n".join(aligned(rows))


def plan_table(graph: Graph, engine: Engine, seconds: Mapping[str, float]) -> str:
    """Return one line a stage: role, artifact, key, what will happen, how long that takes, and why.

    `seconds` has the expected seconds of stages by key. Without any, the column is left out, else a total follows.
    """
    rows = [("stage", "artifact", "key", "", *(["time"] if seconds else []), "why")]
    for node in graph:
        status = engine.status(node)
        why = status.why
        if status.state == "build" and why == MISSING:
            why = f"{why}{nearest_difference(engine, node)}"
        # One artifact may play several roles, such as dense and pruned where nothing is pruned.
        roles = ", ".join(role for role, other in graph.roles.items() if other.key == node.key)
        time = [about(seconds[node.key]) if node.key in seconds else ""] if seconds else []
        rows.append((roles, node.name, node.key[:DIGITS], status.state, *time, why))
    if not seconds:
        return table(rows)
    return f"{table(rows)}\n{about(sum(seconds.values()))} in all on this machine, without what has no time above"


def nearest_difference(engine: Engine, node: Node) -> str:
    """Return a clause on how `node` differs from the artifact in the store that is nearly it; empty without one."""
    found = engine.store.related(node.payload, node.label, TOLD)
    if found is None:
        return ""
    artifact, fields = found
    # What was built from other inputs follows from the rows above.
    own = {name: values for name, values in fields.items() if not name.startswith("inputs.")}
    return f"; {artifact.path.name} differs in {describe_differences(own)}"


def describe_differences(fields: Mapping[str, tuple[Any, Any]], most: int = TOLD) -> str:
    """Return "ratio 0.2 → 0.5, …" (theirs → ours) for the first `most` fields that differ, config first."""
    # Two long values may be cut to the same text. Such fields are named only where no other field differs.
    told = [name for name in fields if short(fields[name][0]) != short(fields[name][1])]
    names = sorted(told or fields, key=lambda name: (name.startswith("inputs."), name))
    shown = [
        f"its {name.replace('inputs.', 'input ')}"
        if name.startswith("inputs.")
        else f"{name.removeprefix('config.')} {short(fields[name][1])} → {short(fields[name][0])}"
        for name in names[:most]
    ]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + more


def size(count: int) -> str:
    """Return bytes in the largest unit that keeps the number above one."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"

"""The report's inputs from a run, found before anything runs. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Node = TypeVar("Node")

JUDGED = ("dense", "dense_recovered", "pruned", "recovered")
"""The models that may have been judged, in the order of a report."""
BESIDE = ("cost", "prune", "recover")
"""Further inputs of a report, each under its own name."""


def read(roles: Mapping[str, Node]) -> dict[str, Node]:
    """Return the report's inputs by their names, from a run's artifacts by their roles."""
    wanted = {f"evaluate-{model}": model for model in JUDGED} | {role: role for role in BESIDE}
    return {name: roles[role] for role, name in wanted.items() if role in roles}

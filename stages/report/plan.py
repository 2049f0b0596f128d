"""The report's inputs from a run, found before anything runs. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Node = TypeVar("Node")

JUDGED = ("dense", "dense_recovered", "pruned", "recovered", "quantised")
"""The models that may have been judged, in the order of a report."""
BESIDE = ("cost", "prune", "recover", "quantise", "gguf")
"""Further inputs of a report, each under its own name."""
QUANTISED = ("quantise", "gguf")
"""The roles of models in few bits."""


def read(roles: Mapping[str, Node]) -> dict[str, Node]:
    """Return the report's inputs by their names, from a run's artifacts by their roles."""
    wanted = {f"evaluate-{model}": model for model in JUDGED} | {role: role for role in BESIDE}
    # A file that was not judged says nothing to a report.
    if "evaluate-quantised" not in roles:
        wanted = {role: name for role, name in wanted.items() if role not in QUANTISED}
    return {name: roles[role] for role, name in wanted.items() if role in roles}

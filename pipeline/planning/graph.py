"""The parts of a plan: nodes with keys, by the roles they play."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.planning import keys
from stages.common.sealed import digest
from stages.prune.plan import Pruning
from stages.stage import Stage


@dataclass(frozen=True)
class Node:
    """One artifact of the plan: a stage with its config and inputs."""

    stage: Stage
    label: str
    """The readable part of the directory's name."""
    config: Any
    inputs: Mapping[str, Node] = field(default_factory=dict)
    locations: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def payload(self) -> dict[str, Any]:
        """Everything that decides the artifact, as JSON types."""
        upstream = {name: node.key for name, node in self.inputs.items()}
        return keys.payload(self.stage.name, self.stage.version, self.config, upstream)

    @cached_property
    def key(self) -> str:
        """The artifact's key, 64 hex digits."""
        return digest(self.payload)

    @property
    def name(self) -> str:
        """The artifact as users see it, without its key."""
        return f"{self.stage.name}/{self.label}"


@dataclass(frozen=True)
class Graph:
    """The nodes by role, in an order in which they can be built."""

    roles: Mapping[str, Node]
    device: str
    pruning: Pruning | None = None
    """The pruning that is planned; None where nothing is pruned."""

    def __iter__(self) -> Iterator[Node]:
        """Yield every node once, inputs first."""
        seen: set[str] = set()
        for node in self.roles.values():
            if node.key not in seen:
                seen.add(node.key)
                yield node

    @property
    def targets(self) -> list[Node]:
        """The artifacts a user asks for: the last model (recovered, else pruned, else source), report and export."""
        model = next(self.roles[role] for role in ("recover", "prune", "model") if role in self.roles)
        return [model, *(self.roles[role] for role in ("report", "export") if role in self.roles)]

    def role_of(self, node: Node) -> str:
        """Return the first role that `node` plays."""
        return next(role for role, other in self.roles.items() if other.key == node.key)

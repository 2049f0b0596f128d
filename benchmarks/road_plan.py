"""What the two roads are made of: the stages of each, and those among them whose time counts. Nothing runs here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pipeline
from benchmarks.material import engine_of
from pipeline.engine.engine import Engine
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph, Node
from pipeline.planning.settled import cache_directory
from stages.data.mixture import MADE_UP, pin
from stages.data.plan import asks_model
from stages.errors import UserError
from stages.registry import STAGES
from stages.text_library.kinds import DEFAULT, TEXTS, Use

OURS: tuple[str, ...] = ()
"""The recommended road: the one place that says which options are compared. Empty is the default of the pipeline."""
STOCK = ("prune=llmpruner", "prune.allocation=paper")
"""The cut of the stock road, whatever is recommended."""
JUDGED = tuple(name for name, kind in TEXTS.items() if kind.use is Use.judged)
"""The kinds of held-out text that count."""
CHOSEN_BY = tuple(name for name, kind in TEXTS.items() if kind.use is Use.chosen_by)
"""The kinds of held-out text that choose the stock road's rate."""
BESIDE = "wikipedia"
"""The kind of held-out text that stands beside those that count."""
MEASURED = ("evaluate=likelihood", "evaluate.tasks=[boolq]", f"evaluate.texts=[{','.join((*DEFAULT, *CHOSEN_BY))}]")
"""Held-out texts come with the rows of tasks. BoolQ is among them, because Wikipedia's passages are its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared at one ratio: the stages of both roads, and our recovery."""

    ratio: float
    engine: Engine
    graph: Graph
    stock: Node
    """The stock road's cut."""
    rows: Node
    """The rows of the stock road's training."""
    cache: Path

    @property
    def percent(self) -> str:
        """The ratio as names of results have it."""
        return f"{100 * self.ratio:g}"

    @property
    def model(self) -> Node:
        """The dense model."""
        return self.graph.roles["model"]

    @property
    def recovery(self) -> Node:
        """Our recovery."""
        return self.graph.roles["recover"]


def planned(ratio: float, given: Sequence[str], device: str) -> Plan:
    """Return what is compared at `ratio`, with the overrides that are `given` for both roads.

    Raises:
        UserError: the options leave out the cut or the recovery, or tune rates, which no clock would count.
    """
    overrides = [*OURS, *given, *MEASURED, f"ratio={ratio:g}", f"runtime.device={device}"]
    config = pipeline.compose(*overrides)
    graph, stock = build_graph(config), build_graph(pipeline.compose(*overrides, *STOCK))
    for role, option in (("prune", "prune=none"), ("recover", "adapter=none")):
        if role not in graph.roles:
            raise UserError(f"{option} leaves nothing to compare. Choose another option of that group.")
    if graph.roles["recover"].stage is not STAGES["recover"]:
        raise UserError("recover.tune=lr recovers several times. Compare one recovery: recover.tune=none.")
    cut, rows = unwritten(stock.roles["prune"]), unwritten(graph.roles["data"])
    # The engine builds only what plays a role, and rows without made-up text play none in our road.
    theirs = {f"stock-{index}": node for index, node in enumerate([*lineage(cut), *lineage(rows)])}
    return Plan(
        ratio=ratio,
        engine=engine_of(config, replace(graph, roles={**graph.roles, **theirs})),
        graph=graph,
        stock=cut,
        rows=rows,
        cache=cache_directory(config),
    )


def unwritten(node: Node) -> Node:
    """Return `node` without rows that the dense model writes, wherever they enter.

    Rows of a data set that it answers are those that it is asked. Text that it makes up is left out of a mixture, whose
    other parts keep their proportions. Where there are no such rows, the node keeps its key.

    Raises:
        UserError: there are no other rows.
    """
    if node.stage is not STAGES["data"]:
        return replace(node, inputs={name: unwritten(other) for name, other in node.inputs.items()})
    rows = {name: other for name, other in node.inputs.items() if other.stage is STAGES["data"]}
    if asks_model(node.config):
        if not rows:
            raise UserError(
                "the stock road reads no text that the dense model makes up, and there is no other. Mix it."
            )
        return next(iter(rows.values()))
    real = {name: unwritten(other) for name, other in rows.items() if other.config.name not in MADE_UP}
    if len(real) == len(rows):
        return replace(node, inputs=real)
    parts = {name: share for name, share in node.config.parts.items() if name in real}
    return replace(node, config=pin(replace(node.config, parts=parts), Path())[0], inputs=real)


def lineage(node: Node) -> Iterator[Node]:
    """Yield `node` and all that it is made from, inputs first and each once."""
    seen: set[str] = set()

    def walk(node: Node) -> Iterator[Node]:
        for other in node.inputs.values():
            yield from walk(other)
        if node.key not in seen:
            seen.add(node.key)
            yield node

    return walk(node)


def needs(node: Node, model: Node) -> bool:
    """Return whether `node` is made from the dense model. What is not is no part of a road's time."""
    return any(other.key == model.key or needs(other, model) for other in node.inputs.values())

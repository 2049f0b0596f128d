"""The work of the stages of a plan, as far as it is known before they run. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.planning.graph import Graph, Node
from pipeline.schema.config import Config
from stages.data import work as data_work
from stages.data.config import AskingConfig
from stages.decoders.shapes import DecoderShape
from stages.decoders.work import Work
from stages.errors import UserError
from stages.evaluate import work as evaluate_work
from stages.model.config import ModelEntry
from stages.model.plan import config_fields
from stages.prune import work as prune_work
from stages.prune.allocation.outcome import PrunePlan
from stages.recover import work as recover_work

log = logging.getLogger("pipeline")

Shapes = Mapping[str, DecoderShape]
"""The shapes of models that no stage has changed, by the keys of their nodes."""


def model_shapes(config: Config, graph: Graph, place: Callable[[Node], Path | None]) -> Shapes:
    """Return the shapes of the plan's models that are known; `place` gives a model's directory."""
    entries: dict[str, ModelEntry] = {graph.roles["model"].key: config.model}
    if config.model.dense is not None:
        others = [node for node in graph if node.stage.name == "model" and node.key not in entries]
        entries |= {node.key: config.model.dense for node in others}
    nodes = {node.key: node for node in graph}
    found: dict[str, DecoderShape] = {}
    for key, entry in entries.items():
        node = nodes[key]
        fields = config_fields(entry, node.config, (place(node), node.locations.get("model")))
        if fields is None:
            continue
        try:
            found[key] = DecoderShape.from_config(fields)
        except UserError as error:
            # Masks take architectures whose shape is not known here.
            log.debug("no times: %s", error)
    return found


def works(graph: Graph, shapes: Shapes, foreseen: PrunePlan | None) -> dict[str, Work]:
    """Return the work of the stages that take more than seconds, by key, where the shapes of their models are known.

    `foreseen` is the outcome of pruning. Where it is not known yet, the share that is asked for takes its place.
    """
    counting = Counting(graph, shapes, foreseen)
    found = {node.key: counting.work(node) for node in graph}
    return {key: work for key, work in found.items() if work is not None and work.total}


class Counting:
    """The work of one graph's nodes, and the shapes of their models."""

    def __init__(self, graph: Graph, shapes: Shapes, foreseen: PrunePlan | None) -> None:
        self.pruning, self.shapes, self.foreseen = graph.pruning, shapes, foreseen

    def work(self, node: Node) -> Work | None:
        """Return the work of `node`; None for a stage whose work is not counted, or a model of unknown shape."""
        stage = node.stage.name
        shape = self.shape(node.inputs["model"]) if "model" in node.inputs else None
        if shape is None:
            return None
        if isinstance(node.config, AskingConfig):
            return data_work.writing(node.config, shape)
        if stage == "scores":
            return prune_work.scoring(node.config, shape)
        if stage == "prune" and self.pruning is not None:
            return prune_work.cutting(self.pruning, shape, scored="scores" in node.inputs)
        # Where trials have the whole budget, the best of them is the recovery.
        again = stage == "tune" and node.config.tokens < node.config.recover.tokens
        if stage in ("recover", "trial") or again:
            return self._recovery(node, shape)
        return evaluate_work.work(node.config, shape) if stage == "evaluate" else None

    def _recovery(self, node: Node, shape: DecoderShape) -> Work | None:
        if "teacher" not in node.inputs:
            return recover_work.work(node.config, shape, None)
        teacher = self.shape(node.inputs["teacher"])
        return None if teacher is None else recover_work.work(node.config, shape, teacher)

    def shape(self, node: Node) -> DecoderShape | None:
        """Return the shape of a node's model, as far as it is known."""
        if "model" not in node.inputs:
            return self.shapes.get(node.key)
        before = self.shape(node.inputs["model"])
        if node.stage.name != "prune" or before is None or self.pruning is None or self.pruning.masks:
            return before  # a recovery keeps the shape, and so do masks
        return _left(before, self.pruning.ratio or 0.0) if self.foreseen is None else self.foreseen.pruned


def _left(shape: DecoderShape, ratio: float) -> DecoderShape:
    """Return a shape with about the work that is left of `shape` without a share of its parameters: fewer layers."""
    layers = shape.parameters() - shape.embedding_parameters()
    stay = len(shape.layers) * (1 - ratio * shape.parameters() / layers)
    return shape.with_layers(shape.layers[: max(1, round(stay))])

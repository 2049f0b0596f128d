"""The outcome of pruning as far as it is known before anything runs. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.planning.graph import Graph
from pipeline.schema.config import Config
from stages.decoders.shapes import DecoderShape, shape_in
from stages.export import plan as export_plan
from stages.model.plan import config_fields
from stages.prune import plan as prune_plan
from stages.prune.allocation.outcome import PrunePlan
from stages.recover.plan import check_fits


def fields_of(config: Config, graph: Graph, directory: Path | None) -> Mapping[str, Any] | None:
    """Return the config.json of the model to prune; None where it is not known yet. The arguments are `preview`'s."""
    model = graph.roles["model"]
    return config_fields(config.model, model.config, (directory, model.locations.get("model")))


def preview(config: Config, graph: Graph, directory: Path | None) -> PrunePlan | None:
    """Return what pruning will cut; None where that is not known yet, nothing is cut, or weights are masked.

    Args:
        config: the configuration.
        graph: the configuration's plan.
        directory: the store's directory of the model to prune, where it is there.

    Raises:
        UserError: the ratio can't be reached, the architecture is unknown, the adapter does not fit the pruned model,
            or the export's format can't say the model's shape.
    """
    fields = fields_of(config, graph, directory)
    foreseen = None if graph.pruning is None else prune_plan.preview(graph.pruning, fields)
    if foreseen is not None:
        check_fits(config.adapter, foreseen.pruned)
    if config.export.format in ("gguf", "decilm"):
        whole = None if fields is None else DecoderShape.from_config(fields)
        shape = whole if foreseen is None else foreseen.pruned
        export_plan.check_export(config.export, shape, config.prune.serve)
        if config.export.format == "gguf" and graph.pruning is not None and shape is not None:
            prune_plan.check_writable(graph.pruning, shape.family)
    if config.export.format == "decilm" and graph.pruning is not None:
        prune_plan.check_servable(graph.pruning, config.prune.serve)
    return foreseen


def export_remarks(config: Config, graph: Graph, foreseen: PrunePlan | None, fields: Mapping[str, Any] | None) -> str:
    """Return what is to be said of the export, where the shape of what is exported is known; else an empty string."""
    if foreseen is not None:
        return export_plan.outlook(config.export, foreseen.pruned)
    cut = graph.pruning is not None and not graph.pruning.masks
    return "" if cut or fields is None else export_plan.outlook(config.export, shape_in(fields))

"""An earlier cut, read from its pruning.json to be made again on a checkpoint of the same shape. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from stages.common.files import read_object
from stages.common.sealed import digest
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.config import PruneConfig
from stages.prune.kept import SIZES

NAME = "like"
"""The method that a record and a directory's name give, where an earlier cut is made again."""
Kept = dict[str, list[int]]


@dataclass(kw_only=True, slots=True)
class LikeConfig(PruneConfig):
    """What decides a cut that is made like an earlier one: what that one kept, and the compensation.

    Options that choose what goes have their defaults.
    """

    method: str = NAME
    kept: str = ""
    """SHA-256 of what the earlier cut kept. Where its record lies is in `Context.locations`."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier cut: where its record lies, and what it kept of each layer (None: nothing), by index."""

    path: Path
    method: str
    layers: list[Kept | None]
    hidden: list[int] | None
    parameters: int

    @property
    def digest(self) -> str:
        """The SHA-256 of what was kept."""
        return digest({"layers": self.layers, "hidden": self.hidden})

    def plan(self, shape: DecoderShape, config: PruneConfig) -> PrunePlan:
        """Return the outcome on a decoder of `shape`.

        Raises:
            UserError: the decoder is not of the shape that the earlier cut was made on.
        """
        if problem := next(self._differences(shape), ""):
            raise UserError(
                f"prune.like: {self.path} is the cut of a model of another shape: {problem}. Cut this model by a "
                "criterion, or give the record of a cut of a model like it."
            )
        layers = tuple(
            None if kept is None else LayerShape(*(len(kept[name]) for name in SIZES)) for kept in self.layers
        )
        return PrunePlan(
            dense=shape,
            layers=layers,
            hidden=shape.hidden if self.hidden is None else len(self.hidden),
            requested=None,
            output_bias=config.compensate == "bias" and layers != shape.layers,
        )

    def _differences(self, shape: DecoderShape) -> Iterator[str]:
        """Yield what sets `shape` apart from the shape of the model that was cut."""
        if len(self.layers) != len(shape.layers):
            yield f"that had {len(self.layers)} layers, this has {len(shape.layers)}"
            return
        if self.parameters != shape.parameters():
            yield f"that had {self.parameters:,} parameters, this has {shape.parameters():,}"
        for index, (kept, layer) in enumerate(zip(self.layers, shape.layers, strict=True)):
            if kept is not None and not _fits(kept, layer):
                yield f"what layer {index} kept is not in a layer of {layer.heads} heads and {layer.mlp} channels"
        if self.hidden is not None and not (self.hidden and self.hidden[-1] < shape.hidden):
            yield f"it kept hidden channel {self.hidden[-1:]}, this has {shape.hidden}"


def earlier(path: Path) -> Earlier:
    """Return the cut that the pruning.json at `path` records.

    Raises:
        UserError: the file holds no such record.
    """
    record = read_object(path)
    if record.get("masks"):
        raise UserError(
            f"prune.like: {path} records masks, which keep every group. Mask this model itself: prune=sparseml."
        )
    layers, hidden = record.get("layers"), record.get("hidden")
    parameters = (record.get("parameters") or {}).get("dense") if isinstance(record.get("parameters"), dict) else None
    layers = layers if isinstance(layers, list) else []
    whole = any(layers) and all(kept is None or _is_kept(kept) for kept in layers)
    if not whole or not (hidden is None or _ascending(hidden)) or type(parameters) is not int:
        raise UserError(
            f"prune.like: {path} does not say what was kept of each layer (layers, hidden, parameters.dense). Give the "
            "pruning.json of a pruned model."
        )
    kept_layers = [None if kept is None else {name: kept[name] for name in SIZES} for kept in layers]
    return Earlier(path, str(record.get("method")), kept_layers, hidden, parameters)


def liked(options: PruneConfig, found: Earlier, *, dtype: str, seed: int) -> LikeConfig:
    """Return what decides the cut: options that nothing reads have their defaults."""
    cut = LikeConfig(kept=found.digest, again=options.again, ratio=0.0, offload=options.offload)
    if options.compensate == "none":
        return cut
    return replace(
        cut,
        compensate=options.compensate,
        calibration=options.calibration,
        calibration_ids=options.calibration_ids,
        dtype=dtype,
        seed=seed,
    )


def _is_kept(kept: Any) -> bool:
    """Return whether `kept` says what is left of a layer, which is something."""
    if not isinstance(kept, dict) or not all(_ascending(kept.get(name)) for name in SIZES):
        return False
    return any(kept[name] for name in SIZES)


def _ascending(numbers: Any) -> bool:
    """Return whether `numbers` are indices, each once and in order."""
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        return False
    return all(one < other for one, other in pairwise(numbers))


def _fits(kept: Kept, layer: LayerShape) -> bool:
    """Return whether a layer has what was kept, and every key/value head that stays as many query heads."""
    heads, kv_heads, mlp = (kept[name] for name in SIZES)
    inside = all(
        not numbers or numbers[-1] < size
        for numbers, size in zip((heads, kv_heads, mlp), (layer.heads, layer.kv_heads, layer.mlp), strict=True)
    )
    if not inside or bool(heads) != bool(kv_heads):
        return False
    each = layer.heads // layer.kv_heads if layer.kv_heads else 1
    counts = {group: sum(head // each == group for head in heads) for group in kv_heads}
    return sum(counts.values()) == len(heads) and len(set(counts.values())) <= 1

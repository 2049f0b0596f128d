"""The common part of the adapters that PEFT has and that are no LoRA: attaching, saving, loading, merging.

    h = W' x        W': the weight W changed by the adapter, another change in every adapter

PEFT's own layers compute them. A weight is merged in float32, the precision of the adapter, and rounded once to the
dtype of the base. In masked modules the positions of zeros stay; each adapter says how its training keeps them.

torch and PEFT are imported inside the functions, because a plan reads the dictionary of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import Adapter, Kept, no_rates
from stages.adapters.also import train_also
from stages.adapters.config import AdapterConfig
from stages.adapters.low_rank import check_targets, check_wrapping, save_lora
from stages.adapters.ranks import PROJECTIONS, Layer, Sizes, layers_of, targeted_in
from stages.common.checks import require
from stages.decoders.masks import with_mask
from stages.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.nn import Module
    from transformers import PreTrainedModel

    from stages.decoders.shapes import DecoderShape

Configured = Callable[[Any, "PreTrainedModel", Mapping[str, Any]], "PeftConfig"]
"""Returns PEFT's configuration for (options, model, the fields that every configuration has)."""
Largest = Callable[[Layer], int]
"""Returns the largest rank that a layer can have."""
Trained = Callable[[Layer, int], int]
"""Returns how many numbers are trained of a layer, given the rank."""
Keeps = Callable[[Mapping[str, Sizes], int, int], Kept]
"""Returns what backward needs of a layer's adapted projections, given the rank and the bytes of a number."""
KeepMasks = Callable[["PreTrainedModel", Collection[str]], None]
"""Changes the attached layers of the named modules so that zeros of their weights stay zeros."""


@dataclass(kw_only=True, slots=True)
class PeftAdapterConfig(AdapterConfig):
    """Options of an adapter of some linear layers."""

    rank: int = 16
    """Rank r, which decides the number of trained parameters; at least 1."""
    targets: list[str] = field(default_factory=lambda: list(PROJECTIONS))
    """Names of the linear layers that get an adapter."""
    also: list[str] = field(default_factory=list)
    """Weights of the model that are trained beside the adapter, at its rate: norms (PEFT saves no biases here)."""


def through_peft(
    configured: Configured,
    config: type[PeftAdapterConfig],
    *,
    largest: Largest,
    trained: Trained,
    keeps: Keeps,
    keep_masks: KeepMasks = lambda model, masked: None,
    prepare: Callable[[], None] = lambda: None,
) -> Adapter:
    """Return the adapter whose PEFT configuration `configured` returns.

    `prepare` is called before PEFT's layers are made. `trained` and `keeps` tell an estimate of memory its sizes.
    """

    def attach(model: PreTrainedModel, settings: Any, masked: Collection[str] = ()) -> Module:
        from peft import get_peft_model

        check_targets(model, settings.targets)
        shared = {"task_type": "CAUSAL_LM", "r": settings.rank, "target_modules": sorted(settings.targets)}
        given = {name: module for name, module in model.named_modules() if _ends(name, settings.targets)}
        _check_ranks(given, settings.rank, largest)
        prepare()
        adapted: Module = get_peft_model(model, configured(settings, model, shared))
        keep_masks(model, masked)
        train_also(model, settings.also)
        return adapted

    def load(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> None:
        from peft import PeftModel

        prepare()
        PeftModel.from_pretrained(base, directory)
        keep_masks(base, masked)

    def merge(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> PreTrainedModel:
        prepare()
        return merge_peft(base, directory, masked)

    def fits(settings: Any, shape: DecoderShape) -> None:
        given = {name: sizes for name, sizes in layers_of(shape) if _ends(name, settings.targets)}
        _check_ranks(given, settings.rank, largest)

    def parameters(settings: Any, shape: DecoderShape) -> int:
        maps = (sizes for layer in targeted_in(shape, settings.targets) for sizes in layer.values())
        return sum(trained(sizes, settings.rank) for sizes in maps)

    def kept(settings: Any, shape: DecoderShape, each: int) -> Sequence[Kept]:
        return [keeps(maps, settings.rank, each) for maps in targeted_in(shape, settings.targets)]

    return Adapter(
        config=config,
        check=check,
        label=lambda settings: "-".join([f"r{settings.rank}", *settings.also]),
        sizes=lambda settings: {"rank": settings.rank},
        facts=lambda settings: {},
        attach=attach,
        rates=no_rates,
        save=save_lora,
        load=load,
        merge=merge,
        fits=fits,
        parameters=parameters,
        keeps=kept,
    )


def check(config: Any) -> None:
    """Raise a `UserError` for an option outside its range."""
    require(config.rank >= 1, "adapter.rank", "at least 1", config.rank)
    check_wrapping(getattr(config, "dropout", 0.0), config.targets)
    require(set(config.also) <= {"norms"}, "adapter.also", f"[norms] or empty with adapter={config.name}", config.also)


def merge_peft(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> PreTrainedModel:
    """Return `base` with the adapter saved in `directory` folded into its weights; zeros of `masked` modules stay.

    The product is taken in float32, a layer at a time, and rounded once to the dtype of `base`.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = PeftModel.from_pretrained(base, directory)
    for name, layer in base.named_modules():
        if isinstance(layer, BaseTunerLayer):
            _merge_layer(layer, masked=name in masked)
    merged: PreTrainedModel = adapted.unload()
    return merged


def _merge_layer(layer: Any, *, masked: bool) -> None:
    weight = layer.base_layer.weight
    dtype, kept_OI = weight.dtype, weight.data != 0 if masked else None
    weight.data = weight.data.float()
    layer.merge()
    # `merge` may have replaced the parameter.
    merged_OI = layer.base_layer.weight.data.to(dtype)
    layer.base_layer.weight.data = merged_OI if kept_OI is None else with_mask(merged_OI, kept_OI)
    # HiRA's layer keeps a copy of the weight, with which PEFT could undo the merge.
    layer._base_weight_before_merge = None


def _ends(name: str, targets: Collection[str]) -> bool:
    return name.rpartition(".")[2] in targets


def _check_ranks(layers: Mapping[str, Any], rank: int, largest: Largest) -> None:
    """Raise a `UserError` that names the first layer that can't have the rank."""
    for name, layer in layers.items():
        if rank > largest(layer):
            raise UserError(
                f"rank {rank} is more than {name} can take: it has {layer.out_features} outputs and "
                f"{layer.in_features} inputs, so its largest rank is {largest(layer)}. Lower adapter.rank, or leave "
                "the layer out of adapter.targets."
            )

"""The common part of the adapters that PEFT implements as LoRA: attaching, saving, merging.

torch and PEFT are imported inside the functions, because a plan reads the dictionary of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import ADAPTER, Adapter, Kept, no_rates
from stages.adapters.also import check_also, saved_also, train_also
from stages.adapters.config import AdapterConfig
from stages.adapters.ranks import PROJECTIONS, inputs_of, layers_of, rank_of, ranks_of, targeted_in
from stages.common.checks import require
from stages.common.choices import nearest
from stages.common.files import write_json
from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel

    from stages.decoders.shapes import DecoderShape

BASE = "pruned-model"
"""Name of the base in adapter_config.json: a path of the machine that trained it would mislead every other machine."""


@dataclass(kw_only=True, slots=True)
class LowRankConfig(AdapterConfig):
    """An update of rank r to each targeted weight."""

    rank: int = 16
    """Rank r of the update; at least 1 and at most the smaller side of the weight."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Ranks of some layers in place of `rank`; their scaling follows: '+adapter.ranks={down_proj: 32,
    layers.3.q_proj: 4}' (Hydra wants the plus). Where several names fit a layer, the name of most parts counts."""
    alpha: float = 16.0
    """Scaling numerator: LoRA scales by alpha/r, RoRA by alpha/sqrt(r)."""
    dropout: float = 0.0
    """Probability of dropping an input of the adapter while training."""
    targets: list[str] = field(default_factory=lambda: list(PROJECTIONS))
    """Names of the linear layers that get an adapter."""
    also: list[str] = field(default_factory=list)
    """Weights of the model that are trained beside the adapter, at its rate: norms, biases."""


def low_rank(
    scaling: Callable[[LowRankConfig], float], *, config: type[LowRankConfig] = LowRankConfig, **options: Any
) -> Adapter:
    """Return the adapter of PEFT's LoraConfig with `options`; `scaling` returns the factor on its update."""

    def attach(model: PreTrainedModel, settings: LowRankConfig, masked: Collection[str] = ()) -> Module:
        return attach_lora(model, settings, masked, **options)

    scaled = bool(options.get("use_dora"))

    return Adapter(
        config=config,
        check=check_low_rank,
        label=lambda settings: "-".join([f"r{settings.rank}", *(["mixed"] if settings.ranks else []), *settings.also]),
        sizes=lambda settings: {"rank": settings.rank, "alpha": settings.alpha, "scaling": scaling(settings)},
        facts=lambda settings: {"scaling": scaling(settings)},
        attach=attach,
        rates=no_rates,
        save=save_lora,
        load=load_peft,
        merge=merge_lora,
        leaves_base=lambda settings: True,
        fits=check_ranks,
        parameters=lambda settings, shape: _parameters(settings, shape, scaled=scaled),
        keeps=lambda settings, shape, each: _kept(settings, shape, each, scaled=scaled),
    )


def check_low_rank(config: LowRankConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    require(config.rank >= 1, "adapter.rank", "at least 1", config.rank)
    for name, rank in config.ranks.items():
        require(rank >= 1, f"adapter.ranks: {name}", "at least 1", rank)
    require(config.alpha > 0, "adapter.alpha", "above 0", config.alpha)
    check_wrapping(config.dropout, config.targets)
    check_also(config.also)


def check_wrapping(dropout: float, targets: list[str]) -> None:
    """Raise a `UserError` for a dropout or targets outside their range; all adapters of linear layers have these."""
    require(0 <= dropout < 1, "adapter.dropout", "in [0, 1)", dropout)
    require(bool(targets), "adapter.targets", "at least one linear layer's name", targets)


def check_ranks(config: LowRankConfig, shape: DecoderShape) -> None:
    """Raise a `UserError` where a layer of this shape can't have its rank."""
    # A target of another name is a layer that shapes do not tell: attaching the adapter checks it.
    if set(config.targets) <= set(PROJECTIONS):
        layers = {name: sizes for name, sizes in layers_of(shape) if name.rpartition(".")[2] in config.targets}
        ranks_of(layers, config.rank, config.ranks)


def _parameters(config: LowRankConfig, shape: DecoderShape, *, scaled: bool) -> int:
    """Return the numbers of A and B, and where outputs are `scaled` those of DoRA's magnitudes."""
    return sum(
        rank_of(name, config.rank, config.ranks) * sum(sizes) + scaled * sizes.out_features
        for maps in targeted_in(shape, config.targets)
        for name, sizes in maps.items()
    )


def _kept(config: LowRankConfig, shape: DecoderShape, each: int, *, scaled: bool) -> Sequence[Kept]:
    """Return what backward needs: inputs of the maps, A's outputs, and where outputs are `scaled` these before it."""
    found = []
    for maps in targeted_in(shape, config.targets):
        numbers = inputs_of(maps) + sum(rank_of(name, config.rank, config.ranks) for name in maps)
        if config.dropout:  # each map drops inputs of its own, and the noise is kept
            numbers += sum(2 * sizes.in_features for sizes in maps.values()) - inputs_of(maps)
        if scaled:
            numbers += sum(sizes.out_features for sizes in maps.values())
        found.append(Kept(each * numbers))
    return found


def attach_lora(model: PreTrainedModel, config: LowRankConfig, masked: Collection[str], **options: Any) -> Module:
    """Wrap the target layers of `model` in PEFT's LoRA layers with float32 adapters; returns the `PeftModel`.

    The zeros of a `masked` layer's weight stay (`.masked`).

    Raises:
        UserError: a target is no linear layer of the model, or a rank is larger than a layer's weight can have.
    """
    from peft import LoraConfig, get_peft_model
    from torch.nn import Linear

    from stages.adapters.fused import FusedLora

    ranks = ranks_of(targeted(model, config.targets), config.rank, config.ranks)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        # Full names, so that PEFT's own matching of patterns can't choose otherwise than `ranks_of`.
        rank_pattern={name: rank for name, rank in ranks.items() if rank != config.rank},
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(config.targets),
        **options,
    )
    # PEFT's experimental interface for layers of one's own; there is no public one.
    lora._register_custom_module({Linear: FusedLora})
    adapted: Module = get_peft_model(model, lora)
    for _, layer in lora_layers(adapted):
        # Under autocast PEFT's own cast of each input to float32 would be undone at once.
        layer.cast_input_dtype_enabled = False
        _set_magnitudes(layer)
    _keep_masks(model, masked)
    train_also(model, config.also)
    return adapted


def lora_layers(model: Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and the module of each of PEFT's LoRA layers in `model`."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _set_magnitudes(layer: Any) -> None:
    """Set DoRA's magnitudes to the norms of the weight's rows in float32; PEFT's are rounded to the base's dtype."""
    from torch import linalg

    for magnitude in layer.lora_magnitude_vector.values():
        magnitude.weight.data = linalg.vector_norm(layer.base_layer.weight.detach().float(), dim=1)


def targeted(model: PreTrainedModel, targets: list[str]) -> Mapping[str, Linear]:
    """Return the linear layers that `targets` name, by their full names.

    Raises:
        UserError: a target is no linear layer of the model's decoder.
    """
    from torch.nn import Linear

    check_targets(model, targets)
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and isinstance(module, Linear)
    }


def check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """Raise a `UserError` unless each target names linear layers of the model's decoder."""
    from torch.nn import Linear

    decoder = model.get_decoder()
    known = sorted({name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, Linear)})
    for target in targets:
        if target not in known:
            raise UserError(
                f"adapter.targets: '{target}' is no linear layer of this model{nearest(target, known) or '.'} "
                f"Known: {', '.join(known)}."
            )


def save_lora(adapted: Module, directory: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json in PEFT's format, with no path of this machine."""
    write_lora(lora_tensors(adapted), lora_fields(adapted), directory)


def lora_tensors(adapted: Module) -> dict[str, Tensor]:
    """Return what is trained by the names of PEFT's saved adapters."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return tensors | {name: parameter.detach() for name, parameter in saved_also(adapted)[0].items()}


def lora_fields(adapted: Module) -> dict[str, Any]:
    """Return PEFT's configuration of the adapter and of what was trained beside it."""
    config: Any = adapted.peft_config[ADAPTER]  # type: ignore[union-attr, index]
    return {**config.to_dict(), **saved_also(adapted)[1]}


def write_lora(tensors: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path) -> None:
    """Write the tensors, named as in PEFT's saved adapters, and the fields of a `LoraConfig`."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in sorted(tensors.items())},
        directory / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    fields = {**config, "base_model_name_or_path": BASE, "inference_mode": True}
    # A set's order differs from process to process; sorted, equal adapters give equal bytes.
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(fields.items())}
    write_json(directory / "adapter_config.json", ordered)


def load_peft(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> None:
    """Attach the adapter in `directory`, in PEFT's format, to `base` in place; zeros of `masked` modules stay."""
    from peft import PeftModel

    PeftModel.from_pretrained(base, directory)
    _keep_masks(base, masked)


def merge_lora(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> PreTrainedModel:
    """Return `base` with the adapter saved in `directory` added to its weights; zeros of `masked` modules stay.

    The sum is taken in float32, the precision of the adapter, and rounded once to the dtype of `base`.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(base, directory)
    _keep_masks(base, masked)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _keep_masks(model: PreTrainedModel, masked: Collection[str]) -> None:
    if masked:
        from stages.adapters.masked import keep_masks

        keep_masks(model, masked)

"""The common part of the series and the parallel adapter: two small matrices with a nonlinearity between them.

    y + s U f(D z)        y = W x;  D: bottleneck x in, Kaiming-uniform;  U: out x bottleneck, zero

z is y (`.series`) or x (`.parallel`). The published code (github.com/AGI-Edgerunners/LLM-Adapters, of arXiv 2304.01933)
draws both matrices from N(0, 0.02²). Here U starts at zero, as that code starts its other variant, so training starts
at the base model.

The adapters can't be merged: f is no matrix, so y + s U f(D z) is no W' x. PEFT has no such adapters, so the format is
ours: adapter_model.safetensors, with tensors named MODULE.down and MODULE.up, and adapter_config.json with the options
below.

torch is imported inside the functions, because a plan reads the dictionary of adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stages.adapters.adapter import Adapter, Kept, no_rates
from stages.adapters.config import AdapterConfig
from stages.adapters.low_rank import check_targets, check_wrapping
from stages.adapters.ranks import Sizes, targeted_in
from stages.common.checks import require
from stages.common.choices import lookup
from stages.common.files import read_json, write_json
from stages.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from stages.decoders.shapes import DecoderShape

ACTIVATIONS = ("tanh", "relu", "gelu", "silu")


@dataclass(kw_only=True, slots=True)
class BottleneckConfig(AdapterConfig):
    """A small network beside some linear layers."""

    bottleneck: int = 256
    """Number of outputs of the first matrix; at least 1. A higher number trains more parameters."""
    activation: str = "tanh"
    """The nonlinearity between the matrices: tanh, relu, gelu or silu."""
    scaling: float = 1.0
    """Factor s on the output of the adapter."""
    dropout: float = 0.0
    """Probability of dropping an input of the adapter while training."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get an adapter."""


def bottleneck(config: type[BottleneckConfig], *, series: bool) -> Adapter:
    """Return the adapter that reads a layer's output (`series`) or its input."""
    formula = "y + s U f(D y)" if series else "y + s U f(D x)"

    def attach(model: PreTrainedModel, settings: BottleneckConfig, masked: Collection[str] = ()) -> PreTrainedModel:
        from stages.adapters.bottleneck_layer import wrap

        check_targets(model, settings.targets)
        return wrap(model, settings, series=series)

    def load(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> None:
        attach(base, config(**read_json(directory / "adapter_config.json")))
        read(base, directory)

    def read_by(sizes: Sizes) -> int:
        return sizes.out_features if series else sizes.in_features

    def parameters(settings: BottleneckConfig, shape: DecoderShape) -> int:
        maps = (sizes for layer in targeted_in(shape, settings.targets) for sizes in layer.values())
        return sum(settings.bottleneck * (read_by(sizes) + sizes.out_features) for sizes in maps)

    def keeps(settings: BottleneckConfig, shape: DecoderShape, each: int) -> Sequence[Kept]:
        # What D reads, and its outputs before and after the nonlinearity.
        return [
            Kept(each * sum(read_by(sizes) + 2 * settings.bottleneck for sizes in maps.values()))
            for maps in targeted_in(shape, settings.targets)
        ]

    return Adapter(
        config=config,
        check=check_bottleneck,
        label=lambda settings: f"b{settings.bottleneck}",
        sizes=lambda settings: {"bottleneck": settings.bottleneck, "scaling": settings.scaling},
        facts=lambda settings: {
            "formula": f"{formula}, where y = W x, s = {settings.scaling:g} and f is {settings.activation}",
            "unmergeable": f"{settings.activation} stands between its matrices",
        },
        attach=attach,
        rates=no_rates,
        save=save,
        load=load,
        merge=None,
        leaves_base=lambda settings: True,
        parameters=parameters,
        keeps=keeps,
    )


def check_bottleneck(config: BottleneckConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    require(config.bottleneck >= 1, "adapter.bottleneck", "at least 1", config.bottleneck)
    require(config.scaling > 0, "adapter.scaling", "above 0", config.scaling)
    check_wrapping(config.dropout, config.targets)
    lookup("adapter.activation", config.activation, dict.fromkeys(ACTIVATIONS))


def save(adapted: Module, directory: Path) -> None:
    """Write the trained matrices and the options."""
    from safetensors.torch import save_file

    from stages.adapters.bottleneck_layer import matrices, options

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: matrix.detach().cpu().contiguous() for name, matrix in sorted(matrices(adapted).items())}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(directory / "adapter_config.json", asdict(options(adapted)))


def read(adapted: PreTrainedModel, directory: Path) -> None:
    """Copy the matrices in `directory` into an adapted model, in the model's precision.

    Raises:
        UserError: the matrices are of another model.
    """
    from safetensors.torch import load_file

    from stages.adapters.bottleneck_layer import matrices

    saved, own = load_file(directory / "adapter_model.safetensors"), matrices(adapted)
    if {name: matrix.shape for name, matrix in saved.items()} != {name: matrix.shape for name, matrix in own.items()}:
        raise UserError(f"{directory} holds the adapter of another model. Give the model that it was trained on.")
    for name, matrix in own.items():
        matrix.data = saved[name].to(adapted.device, adapted.dtype)

"""Full fine-tuning: the model's own weights are trained, all of them or a part.

    h = (W + D) x        D of any rank

The papers on adapters compare them with full fine-tuning (LoRA, arXiv 2106.09685, section 5). Trained weights, their
gradients and both of AdamW's moments are float32: an update of a bfloat16 weight by less than 1/256 of it would be
lost. Under dtype=bfloat16 matrix products run on bfloat16 copies. Full fine-tuning wants a rate a tenth of LoRA's or
lower.

In masked modules the gradient of every zero is set to zero after each backward pass. AdamW's moments then stay zero
there, and so does its update; its weight decay takes a zero to zero. So masks stay, whatever is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.adapters.adapter import Adapter, Kept, no_rates
from stages.adapters.config import AdapterConfig
from stages.adapters.ranks import PROJECTIONS, inputs_of, layers_of, targeted_in
from stages.common.checks import require
from stages.decoders.masks import with_mask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from stages.decoders.shapes import DecoderShape

WEIGHTS = ("all", "decoder", "projections")
KEPT = "kept_OI"
"""Name of a masked module's buffer: whether each of its weights is not zero."""


@dataclass(kw_only=True, slots=True)
class FullConfig(AdapterConfig):
    """Options of full fine-tuning."""

    weights: str = "all"
    """The weights that are trained: "all"; the "decoder" without embeddings and vocabulary head; or the "projections"
    (linear layers) alone."""


def check(config: FullConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    require(config.weights in WEIGHTS, "adapter.weights", f"one of {', '.join(WEIGHTS)}", config.weights)


def attach(model: PreTrainedModel, config: FullConfig, masked: Collection[str] = ()) -> Module:
    """Make the chosen weights of `model` trainable, in float32, and return it."""
    # By identity, because a tied weight has more than one name.
    chosen = {id(parameter) for parameter in _chosen(model, config.weights)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name in masked:
        module = model.get_submodule(name)
        if module.weight.requires_grad:
            _keep_mask(module)
    return model  # type: ignore[no-any-return]


def _chosen(model: PreTrainedModel, weights: str) -> list[Tensor]:
    from torch.nn import Linear

    if weights == "all":
        return list(model.parameters())
    decoder = model.get_decoder()
    if weights == "projections":
        return [p for module in decoder.modules() if isinstance(module, Linear) for p in module.parameters()]
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    return [parameter for parameter in decoder.parameters() if id(parameter) not in ends]


def _keep_mask(module: Module) -> None:
    # Not persistent: the mask is in the zeros of the saved weight already.
    module.register_buffer(KEPT, module.weight.detach() != 0, persistent=False)  # type: ignore[operator]
    module.weight.register_post_accumulate_grad_hook(_zero_where_masked(module))  # type: ignore[operator]


def _zero_where_masked(module: Module) -> Callable[[Tensor], None]:
    def zero(weight: Tensor) -> None:
        weight.grad.mul_(getattr(module, KEPT))  # type: ignore[union-attr]

    return zero


def trained(model: Module, dtype: str) -> PreTrainedModel:
    """Return the model in the dtype that it is stored in; masked modules have exactly the zeros of the base.

    A trained weight of a masked module that is zero in that dtype becomes the smallest normal number instead.
    """
    import torch

    # One by one: `Module.to` would round buffers too, and layers that were sharded refuse it.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    with torch.no_grad():
        for module in model.modules():
            kept_OI, weight_OI = getattr(module, KEPT, None), getattr(module, "weight", None)
            if kept_OI is not None and weight_OI is not None:
                weight_OI.copy_(with_mask(weight_OI, kept_OI))
    return model  # type: ignore[return-value]


def parameters(config: FullConfig, shape: DecoderShape) -> int:
    """Return how many of the model's numbers are trained; of projections without their biases, which are few."""
    if config.weights == "all":
        return shape.parameters()
    if config.weights == "decoder":
        return shape.parameters() - shape.embedding_parameters()
    return sum(sizes.in_features * sizes.out_features for _, sizes in layers_of(shape))


def keeps(config: FullConfig, shape: DecoderShape, each: int) -> Sequence[Kept]:
    """Return what backward needs: inputs of maps and norms; where maps run in another precision, weights in it."""
    cast, found = each < 4, []
    for maps in targeted_in(shape, PROJECTIONS):
        # Autocast casts the input of each map by itself.
        inputs = sum(sizes.in_features for sizes in maps.values()) if cast else inputs_of(maps)
        norms = 0 if config.weights == "projections" else 8 * shape.hidden
        weights = sum(sizes.in_features * sizes.out_features for sizes in maps.values())
        found.append(Kept(each * inputs + norms, each * weights if cast else 0))
    return found


FULL = Adapter(
    config=FullConfig,
    check=check,
    label=lambda config: config.weights,
    sizes=lambda config: {},
    facts=lambda config: {},
    attach=attach,
    rates=no_rates,
    trained=trained,
    parameters=parameters,
    keeps=keeps,
)

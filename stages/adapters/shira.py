"""SHiRA: Sparse High Rank Adapters (arXiv 2406.13175).

    h = (W + S) x        S: r (in + out) trained entries, starting at zero, at places drawn once; all others stay zero

So as many parameters are trained as by LoRA of the same rank, and the update can have any rank. The places are drawn
at random for each weight (the paper's SHiRA-Rand) from the recovery's seed, or are those of the largest weights
(SHiRA-WM). The paper's masks from gradients and SNIP are not here. In masked modules places are drawn among the weights
that are not zero, so masks stay.

PEFT's layers add S to a copy of the weight in every pass and keep the copy for the backward pass, which takes a matrix
of the weight's size a layer; `recover.gradient_checkpointing=true` bounds that to one layer at a time. In bfloat16 the
sum is rounded to bfloat16, as full fine-tuning's weights are; S itself is float32.

Each trained entry is an entry of the weight: rates are those of full fine-tuning or somewhat above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.adapters import through_peft as common
from stages.adapters.adapter import Kept
from stages.adapters.ranks import Layer, Sizes, inputs_of
from stages.adapters.through_peft import PeftAdapterConfig, through_peft
from stages.common.checks import require
from stages.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel

PLACES = ("random", "magnitude")


@dataclass(kw_only=True, slots=True)
class ShiraConfig(PeftAdapterConfig):
    """Some entries of each weight, trained."""

    places: str = "random"
    """The entries that are trained: drawn at "random", or those of the largest "magnitude"."""


def check(config: ShiraConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    common.check(config)
    require(config.places in PLACES, "adapter.places", f"one of {', '.join(PLACES)}", config.places)


def configured(settings: ShiraConfig, model: PreTrainedModel, shared: Mapping[str, Any]) -> PeftConfig:
    """Return PEFT's configuration, which chooses the places when the adapter is attached."""
    import peft

    config = peft.ShiraConfig(**shared)
    config.mask_fn = chosen(settings.places)
    return config


def chosen(places: str) -> Callable[..., Tensor]:
    """Return PEFT's `mask_fn`: for (linear layer, rank) a matrix that is true at r (in + out) places."""

    def mask_fn(layer: Linear, rank: int, **unused: Any) -> Tensor:
        import torch

        weight_OI = layer.weight.detach()
        count = rank * sum(weight_OI.shape)
        kept = int(weight_OI.count_nonzero())
        if kept < count:
            raise UserError(
                f"adapter=shira: rank {rank} trains {count:,} entries of each weight of {weight_OI.shape[0]} x "
                f"{weight_OI.shape[1]}, and one has {kept:,} that are not zero. Lower adapter.rank."
            )
        # Drawn on the processor, so that a GPU trains the same places.
        worth_OI = weight_OI.float().abs().cpu()
        if places == "random":
            worth_OI = torch.rand(worth_OI.shape).where(worth_OI != 0, -1.0)
        mask = torch.zeros(worth_OI.numel(), dtype=torch.bool)
        mask[worth_OI.flatten().topk(count).indices] = True
        return mask.view(worth_OI.shape).to(weight_OI.device)

    return mask_fn


def largest(layer: Layer) -> int:
    """Return the largest rank r for which r (in + out) entries are no more than the weight has."""
    return layer.in_features * layer.out_features // (layer.in_features + layer.out_features)


def prepare() -> None:
    """Tell torch that the indices of S need no check; without a word it warns that it does not check them."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]


def keeps(maps: Mapping[str, Sizes], rank: int, each: int) -> Kept:
    """Return what backward needs: the inputs of the maps, and each weight with S added to it."""
    weights = sum(sizes.in_features * sizes.out_features for sizes in maps.values())
    return Kept(each * inputs_of(maps), each * weights)


SHIRA = replace(
    through_peft(
        configured,
        ShiraConfig,
        largest=largest,
        trained=lambda layer, rank: rank * (layer.in_features + layer.out_features),
        keeps=keeps,
        prepare=prepare,
    ),
    check=check,
)

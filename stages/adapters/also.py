"""Weights of the model itself that are trained beside an adapter: norms, and the biases of linear layers.

They are few: two vectors a layer, and biases only where a family has them. They are trained in place and in float32, at
the adapter's rate, and saved with the adapter in PEFT's form: norms as its `modules_to_save`, biases as `bias="all"`.
So plain PEFT loads and merges them.

torch is imported inside the functions, because a plan reads the dictionary of adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stages.common.choices import lookup
from stages.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel

ALSO = ("norms", "biases")


def check_also(also: Collection[str]) -> None:
    """Raise a `UserError` for a kind that is not among `ALSO`."""
    for kind in also:
        lookup("kind of weights in adapter.also", kind, dict.fromkeys(ALSO))


def train_also(model: PreTrainedModel, also: Collection[str]) -> None:
    """Make these kinds of weights of `model`, which has its adapter, trainable and float32.

    Raises:
        UserError: the model has no weights of a kind.
    """
    for kind in also:
        found = [parameter for own, _, parameter in _weights(model) if own == kind]
        if not found:
            raise UserError(f"adapter.also: this model has no {kind}. Leave them out of the list.")
        for parameter in found:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def saved_also(adapted: Module) -> tuple[dict[str, Parameter], Mapping[str, Any]]:
    """Return the weights that were trained beside the adapter, by PEFT's names, and the fields that tell PEFT of them.

    Both are empty where the adapter alone was trained.
    """
    trained = [found for found in _weights(adapted) if found[2].requires_grad]
    norms = sorted({name.split(".")[-2] for kind, name, _ in trained if kind == "norms"})
    fields = ({"modules_to_save": norms} if norms else {}) | (
        {"bias": "all"} if any(kind == "biases" for kind, _, _ in trained) else {}
    )
    return {name: parameter for _, name, parameter in trained}, fields


def _weights(model: Module) -> Iterator[tuple[str, str, Parameter]]:
    """Yield the kind, the name and the weight of each norm and of each linear layer's bias."""
    from torch.nn import Linear

    for path, module in model.named_modules():
        if "norm" in path.rpartition(".")[2]:
            yield from (("norms", f"{path}.{name}", own) for name, own in module.named_parameters(recurse=False))
        elif isinstance(module, Linear) and module.bias is not None:
            yield "biases", f"{path}.bias", module.bias

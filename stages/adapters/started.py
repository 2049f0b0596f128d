"""Low-rank adapters that can start from what each layer is given: `adapter.init=eva` (`.eva`) or `corda` (`.corda`).

The inputs are those of the first training rows, in one forward pass of the model to recover. A layer is started as soon
as it has been run, and its inputs are then let go, so memory holds those of one layer at a time. A resumed recovery
starts the adapter again, from the same rows, before it reads its checkpoint.

torch and PEFT are imported inside the functions, because a plan reads the dictionary of adapters.

Shape legend: T tokens, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters import split
from stages.adapters.adapter import ADAPTER, Adapter
from stages.adapters.corda import MODES, oriented
from stages.adapters.eva import directions
from stages.adapters.low_rank import LowRankConfig, lora_layers, save_lora
from stages.common.checks import require
from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

STARTS = ("random", "eva", "corda")


@dataclass(kw_only=True, slots=True)
class StartedConfig(LowRankConfig):
    """A low-rank adapter's options, and its start."""

    init: str = "random"
    """The start of A and B: "random" (A random, B zero), or from the layers' inputs: "eva" or "corda"."""
    init_tokens: int = 4096
    """Tokens of the first training rows that eva and corda read, at most the whole budget. More tokens are a better
    sample and take more memory: the inputs of one layer."""
    corda: str = "knowledge"
    """The part of each weight that init=corda trains: the r components that matter least on those rows, which preserves
    the model's "knowledge", or the r that matter most (an "instruction" previewed)."""


def started(adapter: Adapter) -> Adapter:
    """Return the low-rank adapter `adapter`, whose options are a `StartedConfig`, with all its starts."""

    def check(config: Any) -> None:
        adapter.check(config)
        require(config.init in STARTS, "adapter.init", f"one of {', '.join(STARTS)}", config.init)
        require(config.corda in MODES, "adapter.corda", f"one of {', '.join(MODES)}", config.corda)
        require(config.init_tokens >= 1, "adapter.init_tokens", "at least 1 token", config.init_tokens)

    # corda splits a part off each weight.
    return replace(adapter, check=check, start=start, save=save, leaves_base=lambda config: config.init != "corda")


def start(adapted: Module, config: StartedConfig, masked: Collection[str], run: Callable[[int], None]) -> None:
    """Set A and B of every layer from its inputs, while `run` runs the model on a number of tokens.

    Raises:
        UserError: there are fewer tokens than a layer has ranks.
    """
    import torch

    if config.init == "random":
        return
    model, met = adapted.get_base_model(), Met()  # type: ignore[operator]

    # After the layer has run, so that this pass is the base model's to its end.
    def begin(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        inputs_TI, rank = met.inputs(inputs[0]), layer.r[ADAPTER]
        _require_enough(len(inputs_TI), rank, name)
        if config.init == "eva":
            layer.lora_A[ADAPTER].weight.data = met.directions(rank).clone()
            return
        weight_OI, scale = layer.base_layer.weight.detach(), layer.scaling[ADAPTER]
        up_OR, down_RI = oriented(weight_OI, inputs_TI, rank, scale, config.corda)
        split.split_off(layer, up_OR, down_RI, masked=name in masked)

    with ExitStack() as stack:
        for name, layer in lora_layers(model):
            handle = layer.base_layer.register_forward_hook(
                lambda module, inputs, output, name=name, layer=layer: begin(name, layer, inputs)
            )
            stack.callback(handle.remove)
        # PEFT's layers then call their base layer, which is what is watched.
        stack.enter_context(adapted.disable_adapter())  # type: ignore[operator]
        stack.enter_context(torch.no_grad())
        model.eval()
        run(config.init_tokens)


class Met:
    """The inputs of the layer that ran last, and what was found of them: q, k and v are given the same tensor."""

    def __init__(self) -> None:
        self._given: Tensor | None = None
        self._inputs_TI: Tensor
        self._directions: dict[int, Tensor]

    def inputs(self, given: Tensor) -> Tensor:
        """Return the inputs [T, I] in float32; `given` is what the layer was called with."""
        if given is not self._given:
            self._given, self._inputs_TI, self._directions = given, given.detach().flatten(0, -2).float(), {}
        return self._inputs_TI

    def directions(self, rank: int) -> Tensor:
        """Return EVA's directions of the inputs last asked for."""
        if rank not in self._directions:
            self._directions[rank] = directions(self._inputs_TI, rank)
        return self._directions[rank]


def _require_enough(tokens: int, rank: int, name: str) -> None:
    if tokens < rank:
        raise UserError(
            f"adapter.init reads {tokens} tokens, fewer than the rank {rank} of {name}. Raise adapter.init_tokens, and "
            "recover.tokens where that is less."
        )


def save(adapted: Module, directory: Path) -> None:
    """Write the adapter in PEFT's format: a split weight's as the LoRA of rank 2r on the whole weight."""
    whole = not any(hasattr(layer, "initial_A") for _, layer in lora_layers(adapted))
    (save_lora if whole else split.save)(adapted, directory)

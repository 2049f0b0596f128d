"""What an adapter is to the training loop. No torch here: a plan reads these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.config import AdapterConfig
from stages.decoders.shapes import DecoderShape

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

ADAPTER = "default"
"""PEFT's name of the one adapter that a model has here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A way of training few parameters of a frozen model, or all of them. Its functions take its own config.

    Attributes:
        config: the dataclass of its options.
        check: raises a `UserError` for an option outside its range.
        label: a few characters for directory names and tables: "r16".
        sizes: the numbers that card and report give behind its name, each after what it is called: {"rank": 16}.
        facts: what else recovery.json says of it besides its options: the reason why it can't be merged, say.
        attach: changes the model in place, so that its forward pass has the adapter in it and exactly the parameters
            to train require a gradient; returns whatever `save` needs. Random numbers come from torch's generator,
            which the caller has seeded. In the modules named last, zeros of the weights are a mask and stay.
        rates: the factor on the learning rate of each trained parameter that has one of its own, by name.
        save: writes the trained adapter into a directory.
        load: attaches the adapter saved in a directory to a freshly loaded base model, in place and for inference; the
            masks of the modules named last are kept.
        merge: returns a freshly loaded base model with the saved adapter folded into its weights, the masks kept; None
            for adapters that can't be folded; `facts` then has the reason, as "unmergeable".
        trained: for what trains the model's own weights: returns the model in the dtype named last, masks kept. It is
            all that there is to keep, so save, load and merge are None. None for every other adapter.
        fits: raises a `UserError` where a model of this shape can't have the adapter: a plan asks, for the pruned one.
    """

    config: type[AdapterConfig]
    check: Callable[[Any], None]
    label: Callable[[Any], str]
    sizes: Callable[[Any], Mapping[str, float]]
    facts: Callable[[Any], Mapping[str, Any]]
    attach: Callable[[PreTrainedModel, Any, Collection[str]], Module]
    rates: Callable[[Module, Any], Mapping[str, float]]
    save: Callable[[Module, Path], None] | None = None
    load: Callable[[PreTrainedModel, Path, Collection[str]], None] | None = None
    merge: Callable[[PreTrainedModel, Path, Collection[str]], PreTrainedModel] | None = None
    trained: Callable[[Module, str], PreTrainedModel] | None = None
    fits: Callable[[Any, DecoderShape], None] = lambda config, shape: None


def no_rates(adapted: Module, config: Any) -> Mapping[str, float]:
    """Return nothing: every parameter is trained at the recovery's own rate."""
    return {}

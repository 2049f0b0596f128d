"""The record of an adapter, as the training loop uses it. No torch here: a plan reads these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.adapters.config import AdapterConfig
from stages.decoders.shapes import DecoderShape

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

ADAPTER = "default"
"""PEFT's name for an adapter; a model has only this one here."""


class Kept(NamedTuple):
    """The bytes that backward needs of a layer because of its adapter, beside those that the frozen layer needs."""

    token: int = 0
    """For each token, such as the inputs of an adapted map."""
    layer: int = 0
    """Whatever the number of tokens, such as a changed copy of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A way to train few parameters of a frozen model, or all of them. The functions take the adapter's own config.

    Attributes:
        config: the dataclass of its options.
        check: raises a `UserError` for an option outside its range.
        label: returns a few characters for directory names and tables: "r16".
        sizes: returns the numbers that card and report give behind its name, by what they are called: {"rank": 16}.
        facts: returns the entries of recovery.json besides its options, such as the reason why it can't be merged.
        attach: changes the model in place, so that its forward pass includes the adapter and exactly the parameters to
            train require a gradient; returns the module that `save` needs. Random numbers come from torch's generator,
            which the caller has seeded. The last argument names masked modules, whose zeros stay.
        rates: returns the factor on the learning rate of each trained parameter that has its own factor, by name.
        save: writes the trained adapter into a directory.
        load: attaches the adapter saved in a directory to a freshly loaded base model, in place and for inference. The
            last argument names masked modules, whose zeros stay.
        merge: returns a freshly loaded base model with the saved adapter folded into its weights; masks stay. None for
            an adapter that can't be merged: `facts` then has the reason, as "unmergeable".
        trained: returns the trained model in the dtype named last; masks stay. Only for adapters that train the model's
            own weights. They have nothing else to keep, so save, load and merge are None. None for every other adapter.
        start: sets the parameters that `attach` made from what the model's layers are given, in place. The last
            argument runs the model on the first rows of the training, up to a number of tokens. None where `attach`
            does everything.
        leaves_base: returns whether training leaves the weights of the model's layers as they are and has no need of
            whole ones. Only then may they be held in fewer bits.
        fits: raises a `UserError` where a model of this shape can't have the adapter. A plan calls it with the shape of
            the pruned model.
        parameters: returns how many numbers are trained in a model of this shape; those of norms and biases that are
            trained beside an adapter are so few that they may be left out.
        keeps: returns what backward needs of each layer of this shape because of the adapter. The last argument is the
            bytes of a number in the precision of the computation. An estimate of memory reads this and `parameters`.
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
    start: Callable[[Module, Any, Collection[str], Callable[[int], None]], None] | None = None
    leaves_base: Callable[[Any], bool] = lambda config: False
    fits: Callable[[Any, DecoderShape], None] = lambda config, shape: None
    parameters: Callable[[Any, DecoderShape], int] = lambda config, shape: 0
    keeps: Callable[[Any, DecoderShape, int], Sequence[Kept]] = lambda config, shape, each: [Kept()] * len(shape.layers)


def no_rates(adapted: Module, config: Any) -> Mapping[str, float]:
    """Return no factors: every parameter is trained at the recovery's own rate."""
    return {}

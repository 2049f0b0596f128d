"""What calibration text does inside a decoder, without gradients: statistics of activations, layer by layer.

A layer's weights are needed one layer at a time (`Layerwise.resident`). Statistics are taken in float32 whatever the
precision of the model, and merged in float64.

Shape legend: B sequences, T tokens, H hidden channels, F input features of a linear map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.progress import progress
from stages.prune.statistics.layerwise import Layerwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy, Projection
    from stages.prune.memory.resident import Resident


@dataclass(slots=True)
class Moments:
    """Mean and spread of each input feature of a linear map over all tokens that went through it; float64.

    Attributes:
        tokens: how many went through.
        mean_F: the features' means.
        deviations_F: the sums of the squared deviations from them.
    """

    tokens: int = 0
    mean_F: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    deviations_F: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def variance_F(self) -> Tensor:
        """The sample variance of each feature."""
        return self.deviations_F / max(1, self.tokens - 1)

    @property
    def squares_F(self) -> Tensor:
        """The sum of the squares of each feature."""
        return self.deviations_F + self.tokens * self.mean_F**2

    def add(self, values: Tensor) -> None:
        """Take in the features of more tokens, [..., F], merged as in Chan, Golub and LeVeque (1979)."""
        variance_F, mean_F = torch.var_mean(values.detach().flatten(0, -2).float(), 0, correction=0)
        added = values.shape[:-1].numel()
        step_F = mean_F.double().cpu() - self.mean_F
        both = self.tokens + added
        self.mean_F = self.mean_F + step_F * added / both
        spread_F = step_F**2 * self.tokens * added / both
        self.deviations_F = self.deviations_F + variance_F.double().cpu() * added + spread_F
        self.tokens = both


def calibrated(model: PreTrainedModel, ids_BT: Tensor | None, resident: Resident) -> Layerwise:
    """Return `model` on the calibration tokens, to be run layer by layer."""
    if ids_BT is None:
        raise ValueError("activations need calibration tokens")
    return Layerwise(model, ids_BT, resident=resident)


def walk(
    decoder: Layerwise, layers: Sequence[LayerAnatomy], what: str
) -> Iterator[tuple[LayerAnatomy, Tensor, Tensor]]:
    """Yield each of `layers` with its input and its output [B, T, H], its weights in memory until the next one is due.

    The layers before and between them are passed through, those behind the last are not touched. `what` names the work
    on the progress bar.
    """
    wanted = {layer.index: layer for layer in layers}
    last = max(wanted, default=-1)
    with progress(what, total=last + 1, unit="layer") as bar:
        hidden_BTH = decoder.embedded()
        for index in range(last + 1):
            with decoder.resident(index):
                given_BTH, hidden_BTH = hidden_BTH, decoder.run(index, hidden_BTH)
                if index in wanted:
                    yield wanted[index], given_BTH, hidden_BTH
            bar.update()


def outputs(layer: LayerAnatomy) -> list[Projection]:
    """Return the maps that write into the residual stream, o and down: their columns belong to groups."""
    return [projection for projection in layer.projections if projection.axis == 1]


class Statistic(Protocol):
    """What takes in the inputs of a linear map, batch by batch."""

    def add(self, values: Tensor) -> None:
        """Take in the features of more tokens, [..., F]."""


Gathered = TypeVar("Gathered", bound=Statistic)


def gathered(
    decoder: Layerwise, layers: Sequence[LayerAnatomy], statistic: Callable[[], Gathered], what: str
) -> Iterator[tuple[LayerAnatomy, list[tuple[Projection, Gathered]]]]:
    """Yield each of `layers` with its output projections and a statistic of what each is given, weights in memory.

    Nothing of a layer is held once the next one is due. `what` names the work on the progress bar.
    """
    with ExitStack() as stack:
        watched = {layer.index: stack.enter_context(ExitStack()) for layer in layers}
        found = {
            layer.index: [
                (output, _watched(output.linear, statistic(), watched[layer.index])) for output in outputs(layer)
            ]
            for layer in layers
        }
        for layer, _, _ in walk(decoder, layers, what):
            watched[layer.index].close()
            yield layer, found.pop(layer.index)


def input_moments(
    decoder: Layerwise, layers: Sequence[LayerAnatomy]
) -> Iterator[tuple[LayerAnatomy, list[tuple[Projection, Moments]]]]:
    """Yield each of `layers` with its output projections and the moments of what they are given, weights in memory."""
    return gathered(decoder, layers, Moments, "activations")


@contextmanager
def silenced(projections: Sequence[Projection]) -> Iterator[None]:
    """Let the output projections among these give zeros, as if their sub-layer, with its norms, were not there.

    What a norm behind them makes of zeros is zeros.
    """

    def zeros(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    with ExitStack() as stack:
        for projection in projections:
            if projection.axis == 1:
                stack.callback(projection.linear.register_forward_hook(zeros).remove)
        yield


def cosine_distance(one_BTH: Tensor, other_BTH: Tensor) -> float:
    """Return 1 − the mean cosine similarity of two states of the same tokens."""
    pairs = zip(one_BTH, other_BTH, strict=True)  # a sequence at a time, so that no float32 copy of all is made
    similarities = [F.cosine_similarity(one.float(), other.float(), dim=-1).double().mean() for one, other in pairs]
    return 1 - float(torch.stack(similarities).mean())


def _watched(linear: nn.Linear, statistic: Gathered, stack: ExitStack) -> Gathered:
    """Return `statistic`, which takes in what `linear` is given until `stack` is closed."""

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistic.add(inputs[0])

    stack.callback(linear.register_forward_pre_hook(watch).remove)
    return statistic

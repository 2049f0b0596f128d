"""Statistics of activations on the calibration text, without gradients, layer by layer.

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
        tokens: the number of tokens that went through.
        mean_F: the means of the features.
        deviations_F: the sums of the squared deviations from the means.
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
        """Add the features [..., F] of more tokens, merged as in Chan, Golub and LeVeque (1979)."""
        # Deviations from a mean of the batch's own, because a sum of squares would lose the digits of a small spread
        # around a large mean.
        variance_F, mean_F = torch.var_mean(values.detach().flatten(0, -2).float(), 0, correction=0)
        added = values.shape[:-1].numel()
        step_F = mean_F.double().cpu() - self.mean_F
        both = self.tokens + added
        self.mean_F = self.mean_F + step_F * added / both
        spread_F = step_F**2 * self.tokens * added / both
        self.deviations_F = self.deviations_F + variance_F.double().cpu() * added + spread_F
        self.tokens = both


@dataclass(slots=True)
class InputProducts:
    """The sum over tokens of the products of a linear map's inputs; float32.

    Attributes:
        tokens: the number of tokens that went through.
        products_CC: the sum of x xᵀ.
    """

    tokens: int = 0
    products_CC: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def mean_CC(self) -> Tensor:
        """The second moments E[x xᵀ] of the inputs."""
        return self.products_CC / max(1, self.tokens)

    def add(self, values: Tensor) -> None:
        """Add the inputs [..., C] of more tokens."""
        given = values.detach().flatten(0, -2).float()
        self.products_CC = self.products_CC if self.tokens else given.new_zeros(2 * given.shape[-1:])
        self.products_CC.addmm_(given.T, given)
        self.tokens += len(given)


@dataclass(slots=True)
class SequenceNorms:
    """The norm of each input feature of a linear map over the tokens of a sequence, summed over sequences; float64.

    Attributes:
        sequences: the number of sequences that went through.
        sum_F: the sum of their norms.
    """

    sequences: int = 0
    sum_F: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def mean_F(self) -> Tensor:
        """The mean norm of each feature."""
        return self.sum_F / max(1, self.sequences)

    def add(self, values: Tensor) -> None:
        """Add the features [B, T, F] of more sequences."""
        self.sequences += len(values)
        self.sum_F = self.sum_F + values.detach().float().norm(dim=1).double().sum(0).cpu()


def calibrated(model: PreTrainedModel, ids_BT: Tensor | None, resident: Resident) -> Layerwise:
    """Return a run of `model` on the calibration tokens, layer by layer."""
    if ids_BT is None:
        raise ValueError("activations need calibration tokens")
    return Layerwise(model, ids_BT, resident=resident)


def walk(
    decoder: Layerwise, layers: Sequence[LayerAnatomy], what: str
) -> Iterator[tuple[LayerAnatomy, Tensor, Tensor]]:
    """Yield each of `layers` with its input and its output [B, T, H].

    A layer's weights stay in memory until the next layer is asked for. Layers before and between `layers` are run too;
    layers behind the last one are not touched. `what` names the work on the progress bar.
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
                del given_BTH  # or the next layer would run with three states in memory
            bar.update()


def outputs(layer: LayerAnatomy) -> list[Projection]:
    """Return the output projections, o and down: they write into the residual stream, and groups own their columns."""
    return [projection for projection in layer.projections if projection.axis == 1]


class Statistic(Protocol):
    """A statistic of a linear map's inputs, gathered batch by batch."""

    def add(self, values: Tensor) -> None:
        """Add the features [..., F] of more tokens."""


Gathered = TypeVar("Gathered", bound=Statistic)


def gathered(
    decoder: Layerwise, layers: Sequence[LayerAnatomy], statistic: Callable[[], Gathered], what: str
) -> Iterator[tuple[LayerAnatomy, list[tuple[Projection, Gathered]]]]:
    """Yield each of `layers` with its output projections and a statistic of the inputs of each, weights in memory.

    The statistics of a layer are not held once the next layer is asked for. `what` names the work on the progress bar.
    """
    # A layer has a stack of its own: its hooks go before it is yielded, since the caller may run or change it.
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
    """Yield each of `layers` with its output projections and the moments of their inputs, weights in memory."""
    return gathered(decoder, layers, Moments, "activations")


@contextmanager
def silenced(projections: Sequence[Projection]) -> Iterator[None]:
    """Let the output projections among these give zeros within the block, as if their sub-layer were not there.

    A norm behind an output projection turns zeros into zeros, so the sub-layer's norms are left out too.
    """

    def zeros(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    with ExitStack() as stack:
        for projection in projections:
            if projection.axis == 1:
                stack.callback(projection.linear.register_forward_hook(zeros).remove)
        yield


@contextmanager
def without_inputs(projection: Projection, gone: Sequence[int]) -> Iterator[None]:
    """Let a linear map have zeros for its inputs `gone` within the block, as if these columns were not there."""
    columns = torch.tensor(list(gone), dtype=torch.long)

    def zeros(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].index_fill(-1, columns.to(inputs[0].device), 0.0), *inputs[1:])

    handle = projection.linear.register_forward_pre_hook(zeros)
    try:
        yield
    finally:
        handle.remove()


def cosine_distance(one_BTH: Tensor, other_BTH: Tensor) -> float:
    """Return 1 − the mean cosine similarity of two states of the same tokens."""
    pairs = zip(one_BTH, other_BTH, strict=True)  # a sequence at a time, so that no float32 copy of all is made
    similarities = [F.cosine_similarity(one.float(), other.float(), dim=-1).double().mean() for one, other in pairs]
    return 1 - float(torch.stack(similarities).mean())


def _watched(linear: nn.Linear, statistic: Gathered, stack: ExitStack) -> Gathered:
    """Return `statistic`, to which the inputs of `linear` are added until `stack` is closed."""

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistic.add(inputs[0])

    stack.callback(linear.register_forward_pre_hook(watch).remove)
    return statistic

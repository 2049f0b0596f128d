"""Second moments of the inputs and of the output gradients of linear maps, in the memory of a few layers.

The gradients are those of the loss on answers that the model itself draws (`.curvature` says why). The layers are
passed from the last one down, a run of neighbours at a time whose moments fit into `MEMORY`. Each layer is passed
backward once. Of the graph, a segment of layers of about `GRAPH` bytes exists at once, for one batch of sequences.

Shape legend: R outputs and C inputs of a map, B sequences, b those of a batch, T tokens, H hidden channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.common.progress import progress
from stages.decoders.anatomy import decoder_layers
from stages.decoders.drawing import inverted
from stages.prune.memory.sizes import CURVATURE_TOKENS, GRAPH, graph_bytes, runs_of
from stages.prune.memory.sizes import MOMENTS as MEMORY
from stages.prune.statistics.gradients import frozen
from stages.prune.statistics.layerwise import Layerwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(slots=True)
class SecondMoments:
    """Second moments of one linear map over tokens: A = E[x xᵀ] of its inputs, B = E[g gᵀ] of its output gradients."""

    inputs_CC: Tensor
    gradients_RR: Tensor


def moments(
    model: PreTrainedModel, maps: Sequence[nn.Linear], ids_BT: Tensor, *, seed: int, curvature: int | None = None
) -> Iterator[tuple[int, SecondMoments]]:
    """Yield the second moments of each map with its position in `maps`, in float32.

    At most `MEMORY` bytes of moments are held at once, those of neighbouring layers; the last layers come first. Two
    progress bars take turns: one over the calibration text, and one over the caller's work with each map.

    Args:
        model: the model.
        maps: linear maps in the model's layers.
        ids_BT: the calibration tokens.
        seed: the seed of the answers that the model draws.
        curvature: number of sequences, the first ones, that gradients are taken of; None takes them of all. The inputs
            are those of all sequences.
    """
    if not maps:
        return
    by_layer = _by_layer(model, maps)
    layers = sorted(by_layer)
    sizes = [sum(4 * (n.in_features**2 + n.out_features**2) for n in by_layer[index].values()) for index in layers]
    sweep = _Sweep(model, layers[0], ids_BT, seed, len(ids_BT) if curvature is None else curvature)
    for run in reversed(runs_of(sizes, MEMORY)):
        found = sweep.down_to(layers[run.start], {k: v for place in run for k, v in by_layer[layers[place]].items()})
        with progress("costs of groups", total=len(found), unit="map") as bar:
            for position in sorted(found):
                yield position, found.pop(position)  # no longer held here, so it is freed once the caller is done
                bar.update()


def _by_layer(model: PreTrainedModel, maps: Sequence[nn.Linear]) -> dict[int, dict[int, nn.Linear]]:
    """Return by the index of a layer those of `maps` that are in it, by their positions."""
    decoder: Any = model.get_decoder()
    layer_of = {id(module): index for index, layer in enumerate(decoder.layers) for module in layer.modules()}
    found: dict[int, dict[int, nn.Linear]] = defaultdict(dict)
    for position, linear in enumerate(maps):
        found[layer_of[id(linear)]][position] = linear
    return found


class _Sweep:
    """Passes over the calibration text, from the last layers down: each takes up where the one before has ended.

    A batch of sequences passes forward to the layers in question, and through them once more where their graph does not
    fit as a whole.
    """

    def __init__(self, model: PreTrainedModel, first: int, ids_BT: Tensor, seed: int, curvature: int) -> None:
        self.model, self.first, self.end = model, first, len(decoder_layers(model))
        self.decoder, self.tokens, self.counted = Layerwise(model, ids_BT), ids_BT.numel(), ids_BT[:curvature].numel()
        size = max(1, CURVATURE_TOKENS // ids_BT.shape[1])
        self.with_gradient = torch.split(ids_BT[:curvature], size)
        self.without = torch.split(ids_BT[curvature:], size) if self.counted < self.tokens else ()
        # On the processor, whatever the device: answers then depend on the seed and on rounding alone.
        self.draw = torch.Generator().manual_seed(seed % 2**63)
        self.gradients: list[Tensor | None] = [None] * len(self.with_gradient)
        """Of each batch: the gradient of the output [b, T, H] of layer `end` - 1; None before the first pass."""

    def down_to(self, start: int, maps: Mapping[int, nn.Linear]) -> dict[int, SecondMoments]:
        """Return the moments of `maps`, all in the layers from `start` on that were not passed yet."""
        found = {
            position: SecondMoments(
                *(torch.zeros(n, n, device=own.weight.device) for n in (own.in_features, own.out_features))
            )
            for position, own in maps.items()
        }
        watched = [(linear, found[position]) for position, linear in maps.items()]
        segments, end = self._segments(start), self.end
        with frozen(self.model), progress("curvature", total=self.tokens, unit="tok", scale=True) as bar:
            for number, ids in enumerate(self.with_gradient):
                self.gradients[number] = self._backward(ids, segments, self.gradients[number], watched)
                bar.update(ids.numel())
            with torch.no_grad(), _gathering(watched):
                for ids in self.without:
                    self._forward(ids, range(end))
                    bar.update(ids.numel())
        self.end = start
        for own in found.values():
            own.inputs_CC /= self.tokens
            own.gradients_RR /= self.counted
        return found

    def _segments(self, start: int) -> list[range]:
        """Return the layers from `start` on that were not passed yet, as runs of about `GRAPH` bytes of activations."""
        layers, tokens = decoder_layers(self.model)[start : self.end], self.with_gradient[0].numel()
        hidden, each = self.model.config.hidden_size, self.model.dtype.itemsize
        held = [tokens * graph_bytes(layer.shape, layer.head_dim, hidden=hidden, each=each) for layer in layers]
        return [range(start + run.start, start + run.stop) for run in runs_of(held, GRAPH)]

    def _backward(
        self,
        ids_BT: Tensor,
        segments: Sequence[range],
        gradient_BTH: Tensor | None,
        watched: Sequence[tuple[nn.Linear, SecondMoments]],
    ) -> Tensor | None:
        """Gather moments of one batch in all `segments`; returns the gradient of the input of the first of them."""
        with torch.no_grad():
            inputs = [self._forward(ids_BT, range(segments[0].start))]
            for segment in segments[:-1]:
                inputs.append(self._layers(segment, inputs[-1]))
        for segment in reversed(segments):
            # Nothing is differentiated below the first map.
            given_BTH = inputs.pop().requires_grad_(segment.start > self.first)
            with _gathering(watched):
                after_BTH = self._layers(segment, given_BTH)
            if gradient_BTH is None:
                self._back(ids_BT, after_BTH)
            else:
                torch.autograd.backward(after_BTH, gradient_BTH)
            gradient_BTH = given_BTH.grad
        return gradient_BTH

    def _forward(self, ids_BT: Tensor, layers: range) -> Tensor:
        return self._layers(layers, self.decoder.embed(ids_BT))

    def _layers(self, layers: range, hidden_BTH: Tensor) -> Tensor:
        for index in layers:
            hidden_BTH = self.decoder.layer(index, hidden_BTH)
        return hidden_BTH

    def _back(self, ids_BT: Tensor, hidden_BTH: Tensor) -> None:
        """Propagate the summed cross-entropy of answers that the model draws; `hidden_BTH` is of the last layer."""
        logits_BTV = self.decoder.logits(ids_BT, hidden_BTH)
        weight_NV = logits_BTV.detach().flatten(0, 1).float().softmax(-1)
        # Drawn by the model and not read from the text: the module says why.
        drawn_N = torch.rand(len(weight_NV), generator=self.draw, dtype=torch.float64)
        answers_N = inverted(weight_NV, drawn_N.to(weight_NV.device))
        # The gradient of a cross-entropy: the probabilities, less 1 at the answer. It is that of a sum, not of a mean:
        # the moments are divided by the number of tokens once, at the end.
        weight_NV[torch.arange(len(weight_NV), device=weight_NV.device), answers_N] -= 1
        logits_BTV.backward(weight_NV.view_as(logits_BTV).to(logits_BTV.dtype))  # type: ignore[no-untyped-call]


@contextmanager
def _gathering(watched: Sequence[tuple[nn.Linear, SecondMoments]]) -> Iterator[None]:
    """Add to the moments of maps whatever passes the maps within the block, and the gradients of what they give."""
    with ExitStack() as stack:
        for linear, own in watched:
            stack.callback(linear.register_forward_hook(_gather(own)).remove)
        yield


def _gather(own: SecondMoments) -> Any:
    def forward(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = inputs[0].detach().flatten(0, -2).float()
        own.inputs_CC.addmm_(given.T, given)
        if not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            output.requires_grad_()  # the first map: nothing below it is differentiated
        output.register_hook(backward)  # type: ignore[no-untyped-call]

    def backward(gradient: Tensor) -> None:
        flat = gradient.flatten(0, -2).float()
        own.gradients_RR.addmm_(flat.T, flat)

    return forward

"""Compensation: output projections are adjusted on the calibration text to make up for a cut, without training.

    bias           a new bias takes over the mean of what the removed inputs added (FLAP, arXiv 2312.11983, section 4.3)
    least_squares  the columns that stay are fitted, so that the projection gives nearly what it gave before the cut
    sequential     every map is fitted on what the already cut layers give it (`stages.prune.sequential`)

Let x be the inputs of a projection W over all calibration tokens, A = E[x xᵀ], and S the inputs that stay. The fit is

    W'_S = (W A_:S + λ W_S) (A_SS + λ)⁻¹,     λ = `DAMPING` (`stages.prune.statistics.ridge`) · mean of A's diagonal.

λ draws a column that the text leaves undecided towards its old value. The fit is the update of Optimal Brain Surgeon
for structures (SlimGPT, arXiv 2412.18110; LLM Surgeon, arXiv 2312.17244), taken in one step.

The inputs x are those of the dense model.

Shape legend: R outputs and C inputs of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.common.choices import lookup
from stages.common.progress import progress
from stages.decoders.anatomy import LayerAnatomy, Projection, decoder_layers
from stages.prune.config import FITTED
from stages.prune.groups import Kept, Selection
from stages.prune.memory.resident import Resident, always
from stages.prune.sequential import correctable, fit_in_sequence
from stages.prune.statistics.activations import InputProducts, calibrated, gathered, outputs
from stages.prune.statistics.ridge import ridge_solved
from stages.prune.surgery import add_output_bias, head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TRYING = "trying allocations"
"""The name of trials on a progress bar."""


@dataclass(slots=True)
class _Sum:
    """The sum of a linear map's inputs over tokens; float32."""

    tokens: int = 0
    sum_C: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, values: Tensor) -> None:
        """Add the inputs [..., C] of more tokens."""
        given = values.detach().flatten(0, -2).float()
        self.tokens += len(given)
        self.sum_C = self.sum_C.to(given.device) + given.sum(0)


_Way = tuple[Callable[[], Any], Callable[[nn.Linear, Any, Tensor], None]]
"""The statistic of a projection's inputs that a compensation reads, and what adjusts the projection by it."""


def compensate(
    model: PreTrainedModel,
    selection: Selection,
    ids_BT: Tensor | None,
    how: str,
    resident: Resident = always,
    *,
    dtype: str = "float32",
) -> None:
    """Adjust weights of `model` in place for a cut to `selection`, which the caller makes afterwards.

    Args:
        model: the model before the cut.
        selection: the groups that stay.
        ids_BT: the calibration tokens.
        how: "bias", which gives every output projection a bias, "least_squares" or "sequential".
        resident: holds a layer's weights in memory.
        dtype: precision of the passes of "sequential".

    Raises:
        UserError: `how` is unknown.
    """
    fit: _Way = (InputProducts, _fit)
    ways: dict[str, _Way] = {"bias": (_Sum, _add_mean), "least_squares": fit, "sequential": fit}
    statistic, adjust = lookup("prune.compensate", how, ways)
    if how == "sequential" and correctable(model):
        fit_in_sequence(model, selection, ids_BT, dtype=dtype, resident=resident)
        return
    if how == "bias":
        add_output_bias(model, resident)
    with torch.no_grad():
        decoder, layers = calibrated(model, ids_BT, resident), decoder_layers(model)
        for layer, inputs in gathered(decoder, layers, statistic, f"compensating ({how})"):
            for output, own in inputs:
                stays_S = kept_inputs(layer, selection.layers[layer.index], output).to(output.linear.weight.device)
                # A sub-layer that goes whole takes its projection with it: nothing is left to adjust.
                if 0 < len(stays_S) < output.linear.in_features:
                    adjust(output.linear, own, stays_S)


def fitted_layers(
    model: PreTrainedModel, selections: Sequence[Selection], ids_BT: Tensor | None, how: str
) -> Iterator[tuple[int, int, dict[Tensor, Tensor]]]:
    """Yield for each layer, and in it for each selection, the new values of the layer's parameters, by parameter.

    They come with the layer's index and the selection's number. The parameters are those of output projections. Columns
    of inputs that go are zero. With the new values of all layers in place, the uncut model computes what the model cut
    to that selection would compute. (For olmo2 this holds only nearly, because its q and k are normed over all heads.)
    The model must be as it was when the next values are asked for.

    One pass over the calibration text serves all selections. Only fits need the pass: without compensation there is
    nothing to fit, and a bias is not tried out. A selection is tried with the fit of least_squares, also where
    "sequential" follows. That fit is the same for all selections but for one solution each.
    """
    layers = decoder_layers(model)
    fits = how in FITTED
    walked = (
        gathered(calibrated(model, ids_BT, always), layers, InputProducts, TRYING) if fits else _as_they_are(layers)
    )
    for layer, inputs in walked:
        for number, selection in enumerate(selections):
            values: dict[Tensor, Tensor] = {}
            for output, own in inputs:
                values |= _cut_values(output.linear, own, kept_inputs(layer, selection.layers[layer.index], output))
            yield layer.index, number, values


def _as_they_are(layers: Sequence[LayerAnatomy]) -> Iterator[tuple[LayerAnatomy, list[tuple[Projection, None]]]]:
    """Yield each layer with its output projections, of whose inputs nothing is known."""
    with progress(TRYING, total=len(layers), unit="layer") as bar:
        for layer in layers:
            yield layer, [(output, None) for output in outputs(layer)]
            bar.update()


@torch.no_grad()
def _cut_values(linear: nn.Linear, own: InputProducts | None, stays_S: Tensor) -> dict[Tensor, Tensor]:
    """Return the new values of an output projection's parameters, by parameter; empty where all inputs stay.

    The columns of removed inputs are zero. The columns that stay are fitted, or keep their values without `own`.
    Where no column stays, weight and bias are zero.
    """
    if len(stays_S) == linear.in_features:
        return {}
    stays_S = stays_S.to(linear.weight.device)
    if not len(stays_S):
        return {parameter: torch.zeros_like(parameter) for parameter in linear.parameters()}
    weight_RC = torch.zeros_like(linear.weight)
    weight_RC[:, stays_S] = linear.weight[:, stays_S] if own is None else _fitted(linear, own, stays_S)
    return {linear.weight: weight_RC}


def kept_inputs(layer: LayerAnatomy, keep: Kept | None, output: Projection) -> Tensor:
    """Return the indices [S] of an output projection's inputs that stay."""
    if keep is None:
        return torch.zeros(0, dtype=torch.long)
    return head_rows(keep.heads, layer) if output in layer.attention else torch.tensor(keep.mlp, dtype=torch.long)


def _add_mean(linear: nn.Linear, own: _Sum, stays_S: Tensor) -> None:
    """Add to the bias the mean of what the removed inputs contribute."""
    gone_C = torch.ones_like(own.sum_C)
    gone_C[stays_S] = 0
    assert linear.bias is not None
    weight_RC = _aligned(linear.weight)
    linear.bias.add_((weight_RC @ (gone_C * own.sum_C / own.tokens)).to(linear.bias.dtype))


def _fit(linear: nn.Linear, own: InputProducts, stays_S: Tensor) -> None:
    """Fit the columns that stay, in place; the other columns keep their values until they are cut."""
    linear.weight[:, stays_S] = _fitted(linear, own, stays_S)


def _fitted(linear: nn.Linear, own: InputProducts, stays_S: Tensor) -> Tensor:
    """Return the columns that stay, [R, S], fitted to the outputs of all columns."""
    weight_RC, products_CC = _aligned(linear.weight), own.products_CC
    normal_SS, cross_SR = products_CC[stays_S][:, stays_S], products_CC[stays_S] @ weight_RC.T
    fitted_RS = ridge_solved(normal_SS, cross_SR, weight_RC[:, stays_S], products_CC.diagonal().mean())
    return fitted_RS.to(linear.weight.dtype)


def _aligned(weight_RC: Tensor) -> Tensor:
    """Return a float32 copy whose memory begins at a multiple of 64 bytes.

    Weights mapped from a file begin where the file's header ends. The sums of a product with a vector, or with few
    rows, depend on that address. So layers that are read when they are needed (`prune.offload=layer`) would get other
    values.
    """
    return weight_RC.to(torch.float32, copy=True)

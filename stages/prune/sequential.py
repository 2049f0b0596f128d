"""Sequential compensation: every layer is fitted on what the already cut layers give it, without training.

Least squares on the dense model's inputs (`stages.prune.compensation`) mends each output projection by itself. The cut
model's layers read other inputs, because the errors of the layers before add up. Here the dense and the cut model run
side by side, one layer at a time. Let h and ĥ be their residual streams in front of a sub-layer, x and x̂ the inputs of
one of its maps. In this order:

    the maps that read the stream (q, k, v; gate, up)   W' x̂ ≈ W x
    the output projection (o; down)                     W' x̂ ≈ W x + β (h - ĥ),     β = `CORRECTION`

So an output projection also takes back a share of the error that the stream has gathered. Every fit is least squares
over the calibration tokens, drawn towards the old weights as in `stages.prune.compensation`. The tokens of an output
projection weigh 1 / (s + `FLOOR` · median of s), s being the mean square of h. Otherwise the few tokens that carry most
of the residual stream's square would decide. The norm in front of the next sub-layer takes that size away.

The idea is Týr-the-Pruner's (NeurIPS 2025), which mixes both models' outputs ("expected error accumulation"). The fit
of the maps that read the stream and the weights of the tokens are ours.

A family that norms an output before it is added to the stream has no linear map to correct it with. There the fit is
that of `least_squares`.

Shape legend: B sequences, T tokens, H hidden channels, R outputs and C inputs of a map, N tokens of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.common.progress import progress
from stages.decoders.anatomy import LayerAnatomy, Projection, decoder_layers, layer_anatomy
from stages.decoders.modeling_pruned import remove_attention
from stages.decoders.registry import family_of
from stages.prune.groups import Kept, Selection, kept_layer
from stages.prune.memory.resident import Resident, always
from stages.prune.statistics.layerwise import Gathered, Layerwise
from stages.prune.statistics.ridge import ridge_solved
from stages.prune.surgery import cut_layer, head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CORRECTION = 0.75
"""β, the share of the stream's error that an output projection is asked to take back."""
FLOOR = 0.1
"""Share of the median square of the stream that is added to a token's own, so that no token weighs without bound."""


def correctable(model: PreTrainedModel) -> bool:
    """Return whether `model` adds the outputs of its sub-layers to the residual stream as they are."""
    return family_of(model.config.to_dict()).plain_outputs


@torch.no_grad()
def fit_in_sequence(
    model: PreTrainedModel,
    selection: Selection,
    ids_BT: Tensor | None,
    *,
    dtype: str = "float32",
    resident: Resident = always,
) -> None:
    """Fit the weights of `model` that stay, in place, for a cut to `selection`, which the caller makes afterwards.

    Args:
        model: the model before the cut; `correctable`.
        selection: the groups that stay.
        ids_BT: the calibration tokens.
        dtype: precision of the passes; "bfloat16" lets a float32 model multiply in it. Fits are always in float32.
        resident: holds a layer's weights in memory.
    """
    if ids_BT is None:
        raise ValueError("a fit needs calibration tokens")
    decoder = Layerwise(model, ids_BT, resident=resident, products_in=dtype)
    layers = decoder_layers(model)
    dense_BTH = decoder.embedded()
    cut_BTH = dense_BTH.clone()
    with progress("compensating (sequential)", total=len(layers), unit="layer") as bar:
        for layer in layers:
            with resident(layer.index):
                # Where layers are spread over cards, a fit is made on its layer's.
                place = next(layer.module.parameters(), dense_BTH).device
                dense_BTH, cut_BTH = dense_BTH.to(place), cut_BTH.to(place)
                dense_BTH, cut_BTH = _fitted_layer(model, decoder, layer, selection, dense_BTH, cut_BTH)
            bar.update()


def _fitted_layer(
    model: PreTrainedModel,
    decoder: Layerwise,
    layer: LayerAnatomy,
    selection: Selection,
    dense_BTH: Tensor,
    cut_BTH: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fit one layer in place; returns the streams [B, T, H] behind it, of the dense and of the cut model."""
    keep = selection.layers[layer.index]
    if keep is None:  # the layer goes whole, so the cut model's stream passes it by
        return decoder.run(layer.index, dense_BTH), cut_BTH
    if kept_layer(keep) == layer.shape and torch.equal(dense_BTH, cut_BTH):
        after_BTH = decoder.run(layer.index, dense_BTH)
        return after_BTH, after_BTH.clone()
    seen = _seen(decoder, layer, dense_BTH)
    own = _cut_copy(model, layer, keep)
    scale = float(getattr(model.config, "residual_multiplier", 1.0))
    streams = _Streams(dense_BTH, cut_BTH)
    if seen.attention:
        added_BTH = None
        if own.attention:
            with _stands_in(decoder, layer.index, own.module):
                added_BTH = _fitted_part(decoder, own.attention, layer.index, seen.attention, streams, scale)
        streams = streams.added(seen.attention.given_BTR, added_BTH, scale)
        seen.attention = None  # as large as a stream, and no longer needed
    cut_BTH = streams.cut_BTH
    if seen.mlp and own.mlp:
        with _stands_in(decoder, layer.index, _without_attention(model, own)):
            added_BTH = _fitted_part(decoder, own.mlp, layer.index, seen.mlp, streams, scale)
        cut_BTH = torch.add(cut_BTH, added_BTH, alpha=scale)
    _write_back(layer, own, keep)
    return seen.stream_BTH, cut_BTH


@dataclass(frozen=True, slots=True)
class _Streams:
    """The residual streams [B, T, H] of both models in front of a sub-layer."""

    dense_BTH: Tensor
    cut_BTH: Tensor

    def added(self, dense_BTH: Tensor, cut_BTH: Tensor | None, scale: float) -> _Streams:
        """Return the streams behind a sub-layer that adds these, times `scale`; None adds nothing."""
        behind_BTH = self.cut_BTH if cut_BTH is None else torch.add(self.cut_BTH, cut_BTH, alpha=scale)
        return _Streams(torch.add(self.dense_BTH, dense_BTH, alpha=scale), behind_BTH)


@dataclass(slots=True)
class _Part:
    """What passes a sub-layer of the dense model: its maps' input [B, T, H], and what its output projection gives.

    The input is None once it is no longer needed.
    """

    read_BTH: Tensor | None
    given_BTR: Tensor


@dataclass(slots=True)
class _Seen:
    """What passes a layer of the dense model. A sub-layer that is not there is None."""

    attention: _Part | None
    mlp: _Part | None
    stream_BTH: Tensor


def _seen(decoder: Layerwise, layer: LayerAnatomy, stream_BTH: Tensor) -> _Seen:
    """Run the dense layer and return what passed."""
    kept: dict[str, tuple[Gathered, Gathered]] = {}
    handles = []
    for name, part in (("attention", layer.attention), ("mlp", layer.mlp)):
        if part:
            reads, gives = kept[name] = (Gathered(len(stream_BTH)), Gathered(len(stream_BTH)))
            handles.append(part[0].linear.register_forward_pre_hook(lambda _, given, into=reads: into.add(given[0])))
            handles.append(part[-1].linear.register_forward_hook(lambda _, given, output, into=gives: into.add(output)))
    try:
        after_BTH = decoder.run(layer.index, stream_BTH)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: _Part(reads.whole(), gives.whole()) for name, (reads, gives) in kept.items()}
    return _Seen(found.get("attention"), found.get("mlp"), after_BTH)


def _fitted_part(
    decoder: Layerwise, part: Sequence[Projection], index: int, seen: _Part, streams: _Streams, scale: float
) -> Tensor:
    """Fit one sub-layer of the cut layer in place; returns what it then gives [B, T, R]. `seen` is used up."""
    _fit_readers(decoder, part, index, seen, streams)
    read_BTC = _fit_output(decoder, part, index, seen, streams, scale)
    return _given(decoder, part[-1].linear, read_BTC)


def _fit_readers(decoder: Layerwise, part: Sequence[Projection], index: int, seen: _Part, streams: _Streams) -> None:
    """Fit the maps of one sub-layer of the cut layer that read the stream, in place. `seen` then holds no input."""
    read_BTH, seen.read_BTH = seen.read_BTH, None
    cut_BTH = streams.cut_BTH
    if read_BTH is None or torch.equal(streams.dense_BTH, cut_BTH):
        return
    readers = list(dict.fromkeys(projection.linear for projection in part[:-1]))
    hidden, device = cut_BTH.shape[-1], cut_BTH.device
    squares_HH, cross_HH = torch.zeros(hidden, hidden, device=device), torch.zeros(hidden, hidden, device=device)
    for start in range(0, len(cut_BTH), decoder.batch):
        some = slice(start, start + decoder.batch)
        x_NH = _input(decoder, index, cut_BTH[some], readers[0]).flatten(0, 1).float()
        squares_HH.addmm_(x_NH.T, x_NH)
        cross_HH.addmm_(x_NH.T, read_BTH[some].flatten(0, 1).float())
    for linear in readers:
        linear.weight.copy_(ridge_solved(squares_HH, cross_HH @ linear.weight.float().T, linear.weight))


def _fit_output(
    decoder: Layerwise,
    part: Sequence[Projection],
    index: int,
    seen: _Part,
    streams: _Streams,
    scale: float,
) -> Tensor:
    """Fit the output projection of one sub-layer of the cut layer, in place; returns its inputs [B, T, C]."""
    output, (dense_BTH, cut_BTH) = part[-1].linear, (streams.dense_BTH, streams.cut_BTH)
    square_BT = dense_BTH.float().square().mean(-1)
    weight_BT = 1 / (square_BT + FLOOR * square_BT.median() + torch.finfo(torch.float32).tiny)
    inputs, outputs, read = output.in_features, output.out_features, Gathered(len(cut_BTH))
    products_CC = torch.zeros(inputs, inputs, device=cut_BTH.device)
    cross_CR = torch.zeros(inputs, outputs, device=cut_BTH.device)
    for start in range(0, len(cut_BTH), decoder.batch):
        some = slice(start, start + decoder.batch)
        root_N1 = weight_BT[some].flatten().sqrt()[:, None]
        wanted_BTR = seen.given_BTR[some].float() + CORRECTION / scale * (dense_BTH[some] - cut_BTH[some]).float()
        wanted_BTR = wanted_BTR if output.bias is None else wanted_BTR - output.bias.float()
        x_BTC = _input(decoder, index, cut_BTH[some], output)
        read.add(x_BTC)
        x_NC = x_BTC.flatten(0, 1).float() * root_N1
        products_CC.addmm_(x_NC.T, x_NC)
        cross_CR.addmm_(x_NC.T, wanted_BTR.flatten(0, 1) * root_N1)
        del x_BTC, x_NC, wanted_BTR  # or the next batch would pass the layer beside them
    output.weight.copy_(ridge_solved(products_CC, cross_CR, output.weight))
    return read.whole()


class _Reached(Exception):
    """The layer has come to the map whose input is wanted, and need not go on."""


def _input(decoder: Layerwise, index: int, stream_BTH: Tensor, linear: nn.Linear) -> Tensor:
    """Return the input of one linear map of layer `index` for the layer's input [B, T, H]."""
    found: list[Tensor] = []

    def stop(module: nn.Module, given: tuple[Any, ...]) -> None:
        found.append(given[0])
        raise _Reached

    handle = linear.register_forward_pre_hook(stop)
    try:
        decoder.run(index, stream_BTH)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise ValueError("the layer did not use the map")


def _given(decoder: Layerwise, linear: nn.Linear, read_BTC: Tensor) -> Tensor:
    """Return what a map gives for these inputs, [B, T, R], a batch at a time."""
    given = Gathered(len(read_BTC))
    with decoder.products(read_BTC.device.type):
        for some_BTC in torch.split(read_BTC, decoder.batch):
            given.add(linear(some_BTC))
    return given.whole()


def _cut_copy(model: PreTrainedModel, layer: LayerAnatomy, keep: Kept) -> LayerAnatomy:
    """Return a copy of the layer, cut."""
    module = copy.deepcopy(layer.module)
    cut_layer(layer_anatomy(layer.index, module, model), keep, model)
    return layer_anatomy(layer.index, module, model)


def _without_attention(model: PreTrainedModel, own: LayerAnatomy) -> nn.Module:
    """Return the layer with the same MLP and without attention, which then is not computed again for each pass."""
    module = copy.copy(own.module)
    module._modules = dict(module._modules)
    remove_attention(module, family_of(model.config.to_dict()).attention_norms)
    return module


@contextmanager
def _stands_in(decoder: Layerwise, index: int, module: nn.Module) -> Iterator[None]:
    """Let `module` run in the place of a layer within the block."""
    dense, decoder.layers[index] = decoder.layers[index], module
    try:
        yield
    finally:
        decoder.layers[index] = dense


def _write_back(layer: LayerAnatomy, own: LayerAnatomy, keep: Kept) -> None:
    """Write the copy's fitted weights to the places in the uncut layer that the cut will leave."""
    heads, kv_heads = head_rows(keep.heads, layer), head_rows(keep.kv_heads, layer)
    for whole, fitted in zip(layer.attention, own.attention, strict=bool(own.attention)):
        _written(whole, fitted, heads if whole.per_query_head else kv_heads)
    for whole, fitted in zip(layer.mlp, own.mlp, strict=bool(own.mlp)):
        _written(whole, fitted, torch.tensor(keep.mlp))


def _written(whole: Projection, fitted: Projection, stays_S: Tensor) -> None:
    stays_S = stays_S.to(whole.weight.device)
    if whole.axis:
        whole.weight[:, stays_S] = fitted.weight
    else:
        whole.weight[stays_S] = fitted.weight

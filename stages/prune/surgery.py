"""The cut: rows and columns of removed groups leave the weights. This file names no criterion and no architecture.

A cut model computes what the dense model would if every weight of the removed groups were zero, with one exception. A
family that norms q and k over all heads at once (olmo2) takes the mean of squares over the heads that stay. Heads are
of about the same size, so that mean stays near the dense one. Counting zeros would scale up the heads that stay.

Hidden channels differ in size: a few of them carry nearly all of the residual stream's square (in SmolLM2-135M one has
96 %). So where hidden channels go, the norms keep the dense model's scale. With H' of H channels left, the weights of
the norms are multiplied by √(H/H'). That makes a mean over H' channels one over H (but for epsilon, which shrinks as
H'/H).

Gemma multiplies embeddings by √H, and its stock class multiplies by √H' after the cut. The embeddings absorb the
missing √(H/H'). Where the embeddings are the output projection too, that projection grows by the same factor. The
final norm's weights then stay as they are.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.decoders.anatomy import DecoderAnatomy, LayerAnatomy, Projection, decoder_anatomy, decoder_layers
from stages.decoders.modeling_pruned import remove_attention, remove_mlp, set_heads
from stages.decoders.registry import family_of
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from stages.prune.groups import Kept, Selection


def cut(model: PreTrainedModel, selection: Selection, resident: Resident = always) -> None:
    """Cut `model` to `selection` in place, freeing dense weights layer by layer; the model still runs afterwards.

    Each layer is cut within `resident`. The config afterwards has the new number of layers, their types and the hidden
    size, because the forward pass reads them. It still has the dense numbers of heads and MLP channels;
    `stages.decoders.checkpoint.save_cut_model` writes the new ones.
    """
    layers = decoder_layers(model)
    # Without a head_dim of its own, a config may derive it from the hidden size and the number of heads, which change.
    model.config.head_dim = layers[0].head_dim
    for layer, keep in zip(layers, selection.layers, strict=True):
        if keep is not None:
            with resident(layer.index):
                cut_layer(layer, keep, model)
    if None in selection.layers:
        _drop_layers(model, [index for index, keep in enumerate(selection.layers) if keep is not None])
    if selection.hidden is not None and len(selection.hidden) < model.config.hidden_size:
        _cut_hidden(model, decoder_anatomy(model), selection.hidden, resident)


def cut_layer(layer: LayerAnatomy, keep: Kept, model: PreTrainedModel) -> None:
    """Cut one layer of `model`, or a copy of one, in place."""
    _cut_attention(layer, keep, model)
    _cut_mlp(layer, keep, model)


def add_output_bias(model: PreTrainedModel, resident: Resident = always) -> None:
    """Give every output projection of an attention or MLP that has no bias a bias of zeros, for compensation."""
    for layer in decoder_layers(model):
        with resident(layer.index):
            for linear in {projection.linear for projection in layer.projections if projection.axis == 1}:
                if linear.bias is None:
                    linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _cut_attention(layer: LayerAnatomy, keep: Kept, model: PreTrainedModel) -> None:
    """Keep some heads of one layer, or remove its attention."""
    if not layer.attention:
        return
    if not keep.heads:
        remove_attention(layer.module, family_of(model.config.to_dict()).attention_norms)
        return
    rows = {True: head_rows(keep.heads, layer), False: head_rows(keep.kv_heads, layer)}
    _keep_slices(layer.attention, [rows[projection.per_query_head] for projection in layer.attention])
    for norm in layer.head_norms:
        _keep(norm.module, "weight", 0, rows[norm.per_query_head])
    set_heads(layer.module.self_attn, model.config, len(keep.heads), len(keep.kv_heads))


def _cut_mlp(layer: LayerAnatomy, keep: Kept, model: PreTrainedModel) -> None:
    """Keep some channels of one layer's MLP, or remove it."""
    if not layer.mlp:
        return
    if not keep.mlp:
        remove_mlp(layer.module, family_of(model.config.to_dict()).mlp_norms)
        return
    _keep_slices(layer.mlp, [torch.tensor(keep.mlp)] * len(layer.mlp))


def _drop_layers(model: PreTrainedModel, kept: list[int]) -> None:
    """Keep some layers, numbered anew; each keeps what is its own, such as its kind of attention (sliding or full)."""
    decoder: Any = model.get_decoder()
    decoder.layers = nn.ModuleList(decoder.layers[index] for index in kept)
    # `layer_idx` is a layer's place in the cache of keys and values, which has one entry a layer that is left.
    for index, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    # Whatever the config says layer by layer (layer_types, no_rope_layers, …): the layers that are left keep theirs.
    count = model.config.num_hidden_layers
    for name, value in model.config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(model.config, name, [value[index] for index in kept])
    model.config.num_hidden_layers = len(kept)


def _cut_hidden(model: PreTrainedModel, anatomy: DecoderAnatomy, kept: list[int], resident: Resident) -> None:
    """Keep some hidden channels; norms and embeddings are rescaled as the module's docstring says."""
    scale = (model.config.hidden_size / len(kept)) ** 0.5
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output.weight is embedding.weight
    # A tied output projection grows by `scale` with the embeddings, so the final norm must not bring it in again.
    rescaled = anatomy.norms[:-1] if anatomy.scaled_embedding and tied else anatomy.norms
    layer_of = {module: layer.index for layer in anatomy.layers for module in layer.module.modules()}
    for index, places in groupby(anatomy.hidden, key=lambda place: layer_of.get(place.module)):
        with nullcontext() if index is None else resident(index), torch.no_grad():
            for place in places:
                _keep(place.module, place.parameter, place.axis, torch.tensor(kept))
                if place in rescaled:
                    # A norm may scale by offset + weight (gemma by 1 + weight): the sum is what grows.
                    weight, offset = place.weight, anatomy.norm_offset
                    weight.copy_((weight.float() + offset) * scale - offset)
    if tied:
        # `_keep` has given the embedding a new parameter, which the output projection does not share yet.
        output.weight, output.in_features = embedding.weight, len(kept)
    if anatomy.scaled_embedding:
        with torch.no_grad():
            embedding.weight.mul_(scale)
        embedding.scalar_embed_scale = len(kept) ** 0.5
        embedding.embed_scale.fill_(embedding.scalar_embed_scale)
    model.config.hidden_size = len(kept)


def head_rows(heads: list[int], layer: LayerAnatomy) -> Tensor:
    """Return the indices of the rows of the given heads; each head has head_dim rows."""
    return (torch.tensor(heads, dtype=torch.long)[:, None] * layer.head_dim + torch.arange(layer.head_dim)).flatten()


def _keep_slices(projections: Sequence[Projection], indices: Sequence[Tensor]) -> None:
    """Keep the given rows or columns of each projection.

    Projections that are parts of one fused map are cut together, because a cut renumbers the rows of the map.
    """
    kept: dict[nn.Linear, list[Tensor]] = {}
    axes = {projection.linear: projection.axis for projection in projections}
    for projection, own in zip(projections, indices, strict=True):
        kept.setdefault(projection.linear, []).append(projection.start + own)
    for linear, parts in kept.items():
        _keep(linear, "weight", axes[linear], torch.cat(parts))
        if axes[linear] == 0 and linear.bias is not None:
            _keep(linear, "bias", 0, torch.cat(parts))


def _keep(module: Any, name: str, axis: int, indices: Tensor) -> None:
    """Keep the given indices along one axis of a parameter, and update the sizes that the module states."""
    parameter = getattr(module, name)
    left = parameter.detach().index_select(axis, indices.to(parameter.device))
    setattr(module, name, nn.Parameter(left, requires_grad=parameter.requires_grad))
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = len(indices)

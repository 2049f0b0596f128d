"""Cutting: the rows and columns of removed groups leave the weights. Names no criterion and no architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.anatomy import LayerAnatomy, Projection, decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.groups import Selection


def cut(model: PreTrainedModel, selection: Selection) -> None:
    """Keep in each layer of `model` only the groups in `selection`, in place, freeing dense weights layer by layer.

    The model still runs, with the function of the dense model whose other groups' weights are zero. Its config still
    describes the dense shape: `stages.checkpoint.save_cut_model` writes it as what it has become.
    """
    for layer, keep in zip(decoder_layers(model), selection.layers, strict=True):
        assert keep is not None
        heads = {True: keep.heads, False: keep.kv_heads}
        for projection in layer.attention:
            _keep_slices(projection, _head_rows(heads[projection.per_query_head], layer))
        for projection in layer.mlp:
            _keep_slices(projection, torch.tensor(keep.mlp))


def _head_rows(heads: list[int], layer: LayerAnatomy) -> Tensor:
    """Return the rows of the given heads, head_dim each."""
    return (torch.tensor(heads)[:, None] * layer.head_dim + torch.arange(layer.head_dim)).flatten()


def _keep_slices(projection: Projection, indices: Tensor) -> None:
    """Keep the given rows, with their biases, or columns of one linear map."""
    linear, axis = projection.linear, projection.axis
    indices = indices.to(linear.weight.device)
    linear.weight = _selected(linear.weight, axis, indices)
    if axis == 1:
        linear.in_features = len(indices)
        return
    linear.out_features = len(indices)
    if linear.bias is not None:
        linear.bias = _selected(linear.bias, 0, indices)


def _selected(parameter: Tensor, axis: int, indices: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, indices), requires_grad=parameter.requires_grad)

"""Attention within the prefix trees of a pass: a node sees itself and the nodes before it in its own sequences.

Where the device has a kernel for variable lengths, the trees' branches are its sequences: a branch asks with its own
nodes, and its keys are those of the whole sequence so far. That gathers keys once for every branch, so it is kept to
passes where they do not become many. Elsewhere each segment of the pass is one call of SDPA, under a mask unless it is
a chain.

Shapes: T nodes of a pass, L of them in a segment, S keys of all branches, Q query and K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from stages.decoders import sdpa
from stages.decoders.variable_length import Kernel, kernel_for
from stages.inference.decoder import Attend
from stages.inference.prefix_tree import Tree, branches, mask
from stages.rows.bounds import bounds, on_device

GATHERED = 8
"""The most keys of all branches, as a multiple of the nodes, that are gathered.

The choices of a question have fewer times as many as they are themselves. Hundreds of short branches after long
examples would each have a copy of the examples' keys.
"""


def tree_attention(batch: Sequence[Tree], row: Tree, device: torch.device) -> Attend:
    """Return attention within the segments of a pass; `row` has them side by side."""

    @cache
    def in_one_call(kernel: Kernel) -> Attend | None:
        return _by_branches(kernel, row, device)

    @cache
    def by_segments() -> Attend:
        return _by_segments(batch, device)

    def attend(layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scaling: float) -> Tensor:
        kernel = kernel_for(q_TQD.device, q_TQD.dtype, q_TQD.shape[-1])
        chosen = (in_one_call(kernel) if kernel else None) or by_segments()
        return chosen(layer, q_TQD, k_TKD, v_TKD, scaling)

    return attend


def _by_branches(kernel: Kernel, row: Tree, device: torch.device) -> Attend | None:
    """Return attention by one call of `kernel`; None where too many keys would be gathered."""
    own, reach, sources = branches(row)
    if len(sources) > GATHERED * len(row):
        return None
    # Chains have their keys where they are.
    sources_S = on_device(sources, device, torch.long) if own != reach else None
    ends = bounds(own, reach, device)

    def attend(layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scaling: float) -> Tensor:
        if sources_S is not None:
            k_TKD, v_TKD = (part.index_select(0, sources_S) for part in (k_TKD, v_TKD))
        return kernel(q_TQD, k_TKD, v_TKD, ends, scaling=scaling)

    return attend


def _by_segments(batch: Sequence[Tree], device: torch.device) -> Attend:
    """Return attention by one call of SDPA a segment."""
    sizes = [len(tree) for tree in batch]
    masks = [None if tree.is_chain else mask(tree, device) for tree in batch]

    def attend(layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scaling: float) -> Tensor:
        q, k, v = (torch.split(part, sizes) for part in (q_TQD, k_TKD, v_TKD))
        return torch.cat([_within(*part, scaling) for part in zip(q, k, v, masks, strict=True)])

    return attend


def _within(q_LQD: Tensor, k_LKD: Tensor, v_LKD: Tensor, sees_LL: Tensor | None, scaling: float) -> Tensor:
    q_1QLD, k_1KLD, v_1KLD = (part.transpose(0, 1)[None] for part in (q_LQD, k_LKD, v_LKD))
    return sdpa.attention(q_1QLD, k_1KLD, v_1KLD, sees_LL, scaling=scaling)[0].transpose(0, 1)

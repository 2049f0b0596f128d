"""A loss on the vocabulary head's logits, for a head that is trained itself (its weight or the tied embedding).

`stages.recover.loss` takes a frozen head's gradient on the way forward; here autograd does, one chunk of the labelled
tokens after another: a chunk's logits are computed again in the backward pass, and gone after it.

Shapes: N labelled tokens, E hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Labelled tokens whose logits exist at one time; each chunk forms a gradient of the head's size."""


def trained_head_cross_entropy(
    hidden_NE: torch.Tensor, head: torch.nn.Linear, labels_N: torch.Tensor, softcap: float | None = None
) -> torch.Tensor:
    """Return the cross-entropy of `labels_N` summed over tokens, in nats, as a float32 scalar.

    Matrix products are in the precision of `hidden_NE`; the head's gradient is summed in the precision of its weight.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
    for hidden_CE, labels_C in zip(torch.split(hidden_NE, CHUNK), torch.split(labels_N, CHUNK), strict=True):
        total = total + checkpoint(
            _summed, hidden_CE, head.weight, head.bias, labels_C, softcap, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _summed(
    hidden_CE: torch.Tensor,
    weight_VE: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_C: torch.Tensor,
    softcap: float | None,
) -> torch.Tensor:
    dtype = hidden_CE.dtype
    logits_CV = linear(hidden_CE, weight_VE.to(dtype), None if bias_V is None else bias_V.to(dtype)).float()
    if softcap is not None:
        logits_CV = softcap * torch.tanh(logits_CV / softcap)
    return cross_entropy(logits_CV, labels_C, reduction="sum")

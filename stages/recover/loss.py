"""Cross-entropy of the labelled tokens, with the vocabulary head applied only where there is a label.

Shapes: N labelled tokens, E hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

CHUNK = 256
"""Labelled tokens whose logits exist at one time: 50 MB in float32 for a vocabulary of 49k."""


class _HeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy whose gradient is taken chunk by chunk on the way forward, so logits never pile up.

    The head is frozen: only the hidden states get a gradient, softmax(z) - onehot(label) times the head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        gradient_NE = torch.empty_like(hidden_NE) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels_N), CHUNK):
            chunk = slice(start, start + CHUNK)
            labels_C1 = labels_N[chunk, None]
            logits_CV = linear(hidden_NE[chunk], weight_VE, bias_V).float()
            if softcap is not None:
                logits_CV = softcap * torch.tanh(logits_CV / softcap)
            total += (logits_CV.logsumexp(1, keepdim=True) - logits_CV.gather(1, labels_C1)).sum()
            if gradient_NE is None:
                continue
            slope_CV = torch.softmax(logits_CV, 1)
            slope_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=slope_CV.dtype))
            if softcap is not None:
                slope_CV *= 1 - (logits_CV / softcap) ** 2
            gradient_NE[chunk] = slope_CV.to(weight_VE.dtype) @ weight_VE
        if gradient_NE is not None:
            ctx.save_for_backward(gradient_NE)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient_NE,) = ctx.saved_tensors
        return gradient_NE * upstream[0].to(gradient_NE.dtype), None, None, None, None


def summed_cross_entropy(
    hidden_NE: torch.Tensor, head: torch.nn.Linear, labels_N: torch.Tensor, softcap: float | None = None
) -> torch.Tensor:
    """Return the cross-entropy of `labels_N` summed over tokens, in nats, as a float32 scalar.

    Logits z are softcap · tanh(z / softcap) where a model caps them (gemma2).
    """
    hidden_NE = hidden_NE.to(head.weight.dtype)
    loss: torch.Tensor = _HeadCrossEntropy.apply(hidden_NE, head.weight, head.bias, labels_N, softcap)  # type: ignore[no-untyped-call]
    return loss

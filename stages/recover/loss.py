"""Cross-entropy of the labelled tokens, with the vocabulary head applied only where there is a label.

Shapes: N labelled tokens, E hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from stages.decoders.chunks import chunk_size
from stages.decoders.logits import PLAIN, Logits
from stages.recover.sizes import CROSS_ENTROPY_CHUNK as CHUNK
from stages.recover.sizes import TRAINED_CHUNK as TRAINED_CHUNK


class _HeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy with its gradient taken chunk by chunk in the forward pass, so that logits never pile up.

    The head is frozen. Only the hidden states get a gradient: softmax(z) - onehot(label) times the head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        logits: Logits,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        gradient_NE = torch.empty_like(hidden_NE) if ctx.needs_input_grad[0] else None
        # One buffer for all chunks: the logits of a new one each time would cost more page faults than arithmetic.
        size = chunk_size(hidden_NE.device, len(weight_VE), CHUNK)
        buffer_CV = hidden_NE.new_empty(min(size, len(labels_N)), len(weight_VE))
        for start in range(0, len(labels_N), size):
            chunk = slice(start, start + size)
            hidden_CE, labels_C1 = hidden_NE[chunk], labels_N[chunk, None]
            logits_CV = logits.in_place(_headed(hidden_CE, weight_VE, bias_V, buffer_CV[: len(hidden_CE)]))
            # Both are read before the logits are overwritten with their exponentials.
            slope_CV = None if gradient_NE is None else logits.slope(logits_CV)
            said_C1 = logits_CV.gather(1, labels_C1)
            # exp of the difference from the largest logit can't overflow.
            largest_C1 = logits_CV.amax(1, keepdim=True)
            sums_C1 = logits_CV.sub_(largest_C1).exp_().sum(1, keepdim=True)
            total += (sums_C1.log() + largest_C1 - said_C1).sum()
            if gradient_NE is None:
                continue
            # (softmax(z) - onehot(label)) W, without a pass over the logits for either the division or the label.
            of_label_CE = weight_VE[labels_C1[:, 0]]
            if slope_CV is not None:
                logits_CV.mul_(slope_CV)
                of_label_CE = of_label_CE * slope_CV.gather(1, labels_C1).to(of_label_CE.dtype)
            pulled_CE = logits_CV.to(weight_VE.dtype) @ weight_VE
            gradient_NE[chunk] = pulled_CE.float().div_(sums_C1).sub_(of_label_CE)
        if gradient_NE is not None:
            ctx.save_for_backward(gradient_NE)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient_NE,) = ctx.saved_tensors
        return gradient_NE * upstream[0].to(gradient_NE.dtype), None, None, None, None


def _headed(
    hidden_CE: torch.Tensor, weight_VE: torch.Tensor, bias_V: torch.Tensor | None, out_CV: torch.Tensor
) -> torch.Tensor:
    """Return the head's output in float32; it is `out_CV` itself where that is float32."""
    if bias_V is None:
        torch.mm(hidden_CE, weight_VE.T, out=out_CV)
    else:
        torch.addmm(bias_V, hidden_CE, weight_VE.T, out=out_CV)
    return out_CV.float()


def summed_cross_entropy(
    hidden_NE: torch.Tensor, head: torch.nn.Linear, labels_N: torch.Tensor, logits: Logits = PLAIN
) -> torch.Tensor:
    """Return the cross-entropy of `labels_N` summed over tokens, in nats, as a float32 scalar.

    `logits` is the model's map from the head's output to its logits.
    """
    if head.weight.requires_grad:
        return trained_head_cross_entropy(hidden_NE, head, labels_N, logits)
    hidden_NE = hidden_NE.to(head.weight.dtype)
    loss: torch.Tensor = _HeadCrossEntropy.apply(hidden_NE, head.weight, head.bias, labels_N, logits)  # type: ignore[no-untyped-call]
    return loss


def trained_head_cross_entropy(
    hidden_NE: torch.Tensor, head: torch.nn.Linear, labels_N: torch.Tensor, logits: Logits = PLAIN
) -> torch.Tensor:
    """Return the summed cross-entropy for a head that is trained itself (its weight or the tied embedding).

    Autograd takes the gradient here, one chunk after another. The logits of a chunk are computed again in the backward
    pass, and freed after it. Matrix products are in the precision of `hidden_NE`. The head's gradient is summed in the
    precision of its weight.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
    size = chunk_size(hidden_NE.device, len(head.weight), TRAINED_CHUNK)
    chunks = (torch.split(tensor, size) for tensor in (hidden_NE, labels_N))
    for hidden_CE, labels_C in zip(*chunks, strict=True):
        operands = (hidden_CE, head.weight, head.bias, labels_C, logits)
        total = total + checkpoint(_summed_chunk, *operands, use_reentrant=False, preserve_rng_state=False)
    return total


def _summed_chunk(
    hidden_CE: torch.Tensor,
    weight_VE: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_C: torch.Tensor,
    logits: Logits,
) -> torch.Tensor:
    dtype = hidden_CE.dtype
    given_CV = linear(hidden_CE, weight_VE.to(dtype), None if bias_V is None else bias_V.to(dtype)).float()
    return cross_entropy(logits(given_CV), labels_C, reduction="sum")

"""The divergence from a teacher, mixed with cross-entropy; the vocabulary head is applied only where there is a label.

With student logits z, labels y, temperature T and weight w, a token's loss is (arXiv 1503.02531, section 2)

    (1 - w) CE(z, y) + w T² D(p, q),    q = softmax(z / T),    p the teacher's at the same temperature

where T² keeps the gradient's size as T grows. Its gradient with respect to z is

    (1 - w) (softmax(z) - onehot(y)) + w T g

D is one of `DIVERGENCES`, with g the gradient of D with respect to z / T:

    forward    KL(p ‖ q)                                               g = q - p
    reverse    KL(q ‖ p)                                               g = q (r - Σ q r),    r = log q / p
    jensen     β KL(p ‖ m) + (1 - β) KL(q ‖ m),  m = β p + (1 - β) q     g = (1 - β) q (r - Σ q r),    r = log q / m

Reverse is MiniLLM's (arXiv 2306.08543), jensen the generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649,
section 2). Jensen divided by β tends to forward as β goes to 0, and divided by 1 - β to reverse as β goes to 1.

The gradient is taken chunk by chunk in the forward pass, so that logits never pile up.

Shapes: N labelled tokens, E hidden size, V vocabulary, C tokens of a chunk, K tokens that a teacher names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stages.decoders.chunks import chunk_size
from stages.decoders.logits import PLAIN, Logits
from stages.recover.sizes import DIVERGENCE_CHUNK as CHUNK


class Targets(Protocol):
    """A teacher's probabilities at N labelled tokens, at the temperature of the student's."""

    def log_probabilities(self, chunk: slice, student_CV: Tensor) -> Tensor:
        """Return log p [C, V], which the caller may overwrite; the student's log q is left as it is."""


@dataclass(frozen=True, slots=True)
class Exact:
    """All of the teacher's probabilities, from its hidden states."""

    hidden_NE: Tensor
    head: nn.Linear
    logits: Logits
    temperature: float

    def log_probabilities(self, chunk: slice, student_CV: Tensor) -> Tensor:
        """Return log p [C, V]."""
        logits_CV = self.logits.in_place(linear(self.hidden_NE[chunk], self.head.weight, self.head.bias).float())
        return torch.log_softmax(logits_CV.div_(self.temperature), 1)


@dataclass(frozen=True, slots=True)
class TopK:
    """The teacher's probabilities of its K likeliest tokens, and the sum of those of all other tokens.

    The other tokens are one event, whose probability the student must match. So the divergence is the KL between
    distributions of K + 1 events. It is a lower bound of the exact divergence, and zero only where the student agrees
    in all these events. Renormalising the K probabilities instead would teach that no other token is possible: a biased
    teacher (arXiv 2503.16870).

    The sum is spread over the other tokens in the student's own proportions. With that p, the formulas of every exact
    divergence give the divergence of K + 1 events, and its gradient.
    """

    log_probabilities_NK: Tensor
    indices_NK: Tensor
    log_rest_N: Tensor

    @classmethod
    def of(cls, exact: Exact, count: int) -> TopK:
        """Return the `count` likeliest tokens at each labelled token of `exact`."""
        parts = []
        # At least one chunk, so that a batch without labels gives empty tensors.
        size = chunk_size(exact.hidden_NE.device, len(exact.head.weight), CHUNK)
        for start in range(0, max(len(exact.hidden_NE), 1), size):
            # `Exact` does not read its second argument, so any tensor will do.
            log_p_CV = exact.log_probabilities(slice(start, start + size), exact.hidden_NE)
            log_p_CK, indices_CK = log_p_CV.topk(min(count, log_p_CV.shape[1]), dim=1)
            # With the likeliest tokens struck out, the sum is that of all others.
            parts.append((log_p_CK, indices_CK.int(), log_p_CV.scatter_(1, indices_CK, -torch.inf).logsumexp(1)))
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def log_probabilities(self, chunk: slice, student_CV: Tensor) -> Tensor:
        """Return log p [C, V], the unnamed tokens in the student's proportions."""
        indices_CK = self.indices_NK[chunk].long()
        rest_CV = student_CV.scatter(1, indices_CK, -torch.inf)
        scale_C1 = self.log_rest_N[chunk, None] - rest_CV.logsumexp(1, keepdim=True)
        return rest_CV.add_(scale_C1).scatter_(1, indices_CK, self.log_probabilities_NK[chunk])


Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps log p and log q [C, V] to D summed over the tokens, and to g [C, V]. log p is overwritten, log q is not."""


def forward(log_p_CV: Tensor, log_q_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p ‖ q) summed over tokens, and its gradient."""
    # p is kept for the gradient. log p is not, so the difference is taken in its memory.
    p_CV = log_p_CV.exp()
    total = torch.linalg.vecdot(p_CV, log_p_CV.sub_(log_q_CV)).sum()
    return total, log_q_CV.exp().sub_(p_CV)


def reverse(log_p_CV: Tensor, log_q_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q ‖ p) summed over tokens, and its gradient."""
    q_CV, ratio_CV = log_q_CV.exp(), log_p_CV.neg_().add_(log_q_CV)
    each_C1 = torch.linalg.vecdot(q_CV, ratio_CV)[:, None]
    return each_C1.sum(), ratio_CV.sub_(each_C1).mul_(q_CV)


def jensen(log_p_CV: Tensor, log_q_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return β KL(p ‖ m) + (1 - β) KL(q ‖ m) summed over tokens, and its gradient; m = β p + (1 - β) q."""
    log_m_CV = torch.logaddexp(log_p_CV + math.log(beta), log_q_CV + math.log1p(-beta))
    q_CV, ratio_CV = log_q_CV.exp(), log_q_CV - log_m_CV
    of_teacher = torch.linalg.vecdot(log_p_CV.exp(), log_p_CV.sub_(log_m_CV)).sum()
    of_student_C1 = torch.linalg.vecdot(q_CV, ratio_CV)[:, None]
    slope_CV = ratio_CV.sub_(of_student_C1).mul_(q_CV).mul_(1 - beta)
    return beta * of_teacher + (1 - beta) * of_student_C1.sum(), slope_CV


def divergence_of(name: str, beta: float) -> Divergence:
    """Return the divergence of this name; `beta` is jensen's and means nothing to the others."""
    return partial(jensen, beta=beta) if name == "jensen" else {"forward": forward, "reverse": reverse}[name]


class _Mixture(torch.autograd.Function):
    """The mixture summed over tokens, and its two parts, which carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        targets: Targets,
        temperature: float,
        share: float,
        logits: Logits,
        diverging: Divergence,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients = [
            torch.zeros_like(tensor, dtype=torch.float32) if needed and tensor is not None else None
            for tensor, needed in zip((hidden_NE, weight_VE, bias_V), ctx.needs_input_grad, strict=False)
        ]
        ctx.dtypes = [hidden_NE.dtype, weight_VE.dtype, None if bias_V is None else bias_V.dtype]
        weight_VE, bias_V = weight_VE.to(hidden_NE.dtype), None if bias_V is None else bias_V.to(hidden_NE.dtype)
        cross_entropy, divergence = torch.zeros(2, dtype=torch.float32, device=hidden_NE.device)
        size = chunk_size(hidden_NE.device, len(weight_VE), CHUNK)
        for start in range(0, len(labels_N), size):
            chunk = slice(start, start + size)
            hidden_CE, labels_C1 = hidden_NE[chunk], labels_N[chunk, None]
            logits_CV = logits.in_place(linear(hidden_CE, weight_VE, bias_V).float())
            said_CV = torch.log_softmax(logits_CV, 1)
            cross_entropy -= said_CV.gather(1, labels_C1).sum()
            # Cross-entropy is of the plain logits, the divergence of those at temperature T.
            log_q_CV = said_CV if temperature == 1 else torch.log_softmax(logits_CV / temperature, 1)
            log_p_CV = targets.log_probabilities(chunk, log_q_CV)
            of_chunk, slope_CV = diverging(log_p_CV, log_q_CV)
            divergence += temperature**2 * of_chunk
            if gradients == [None, None, None]:
                continue
            slope_CV.mul_(share * temperature)
            # The part of cross-entropy, (1 - w) (softmax(z) - onehot(y)), in the memory of log softmax(z).
            if share < 1:
                slope_CV.add_(said_CV.exp_(), alpha=1 - share)
                slope_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, share - 1, dtype=slope_CV.dtype))
            if (of_logits_CV := logits.slope(logits_CV)) is not None:
                slope_CV.mul_(of_logits_CV)
            _add_gradients(gradients, chunk, slope_CV.to(weight_VE.dtype), hidden_CE, weight_VE)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return (1 - share) * cross_entropy + share * divergence, cross_entropy, divergence

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            None if gradient is None else (gradient * upstream[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None, None, None, None


def _add_gradients(
    gradients: list[Tensor | None], chunk: slice, slope_CV: Tensor, hidden_CE: Tensor, weight_VE: Tensor
) -> None:
    """Add a chunk's part to the gradients that are not None: of the hidden states, the head's weight and its bias."""
    of_hidden_NE, of_weight_VE, of_bias_V = gradients
    if of_hidden_NE is not None:
        of_hidden_NE[chunk] = (slope_CV @ weight_VE).float()
    if of_weight_VE is not None:
        of_weight_VE += slope_CV.T @ hidden_CE
    if of_bias_V is not None:
        of_bias_V += slope_CV.sum(0)


def summed_mixture(
    hidden_NE: Tensor,
    head: nn.Linear,
    labels_N: Tensor,
    targets: Targets,
    *,
    temperature: float = 1.0,
    share: float = 1.0,
    logits: Logits = PLAIN,
    diverging: Divergence = forward,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mixture, its cross-entropy and its divergence (times T²), summed over tokens, as float32 scalars.

    Only the mixture has a gradient, with respect to the hidden states, and to the head's weight and bias where they are
    trained.
    """
    if not head.weight.requires_grad:  # a trained head is float32, whatever the computation's precision
        hidden_NE = hidden_NE.to(head.weight.dtype)
    parts: tuple[Tensor, Tensor, Tensor] = _Mixture.apply(  # type: ignore[no-untyped-call]
        hidden_NE, head.weight, head.bias, labels_N, targets, temperature, share, logits, diverging
    )
    return parts

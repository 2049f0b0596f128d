"""The loss that removing inputs of a linear map costs, with or without the other inputs adjusted to make up for it.

A map W with inputs x and output gradients g has the Fisher information F = E[(g xᵀ)(g xᵀ)ᵀ]. F is taken as the
Kronecker product of B = E[g gᵀ] and A = E[x xᵀ] (K-FAC; Martens and Grosse 2015, arXiv 1503.05671). A change ΔW then
costs

    ΔL = ½ tr(B ΔW A ΔWᵀ)      nats a token, to second order.

Removing the inputs S and adjusting the rest at best costs ½ tr(B W_S [A⁻¹]_SS⁻¹ W_Sᵀ) (Optimal Brain Surgeon; for
structures LLM Surgeon, arXiv 2312.17244, eq. 9 and 10, and ZipLM, arXiv 2302.04089). The A⁻¹ of the remaining inputs
follows by elimination. B does not enter the adjustment: it is least squares on the calibration inputs, as
`stages.prune.compensation` does it.

Gradients are those of the loss on answers that the model itself draws. That makes F the Fisher information, and not a
sum over the tokens that the calibration text happens to have. F is the same for all tokens of the sequences. A and B
are gathered in `.second_moments`.

Shape legend: R outputs and C inputs of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stages.prune.statistics.second_moments import SecondMoments

DAMPING = 0.01
"""Added to the diagonal of A, as a share of the diagonal's mean."""
TOGETHER = 16
"""Number of inputs, the cheapest ones, that are eliminated at once; their joint cost is exact."""


class Removal:
    """The removal of one map's inputs, set after set; the other inputs keep their weights.

    Attributes:
        loss: nats a token lost by all inputs removed so far.
    """

    def __init__(self, weight_RC: Tensor, own: SecondMoments) -> None:
        self.inputs_CC = own.inputs_CC
        self.weight_RC = _whitened(weight_RC, own)
        self.given_RC = torch.zeros_like(self.weight_RC)
        """ΔW A of all inputs removed so far."""
        self.loss = 0.0

    def remove(self, columns: Tensor) -> float:
        """Remove the given inputs; returns the loss so far."""
        # With D removed before and d now: ½ tr((D + d) A (D + d)ᵀ) - ½ tr(D A Dᵀ) = tr(D A dᵀ) + ½ tr(d A dᵀ). B is the
        # identity in the coordinates of `_whitened`.
        change_RS = self.weight_RC[:, columns]
        added_RC = change_RS @ self.inputs_CC[columns]
        self.loss += float(((self.given_RC[:, columns] + 0.5 * added_RC[:, columns]) * change_RS).sum())
        self.given_RC += added_RC
        return self.loss


class Elimination:
    """The removal of one map's inputs, set after set; the weights of the other inputs make up for them.

    Attributes:
        loss: nats a token lost by all inputs removed so far.
    """

    def __init__(self, weight_RC: Tensor, own: SecondMoments) -> None:
        inputs_CC = own.inputs_CC.clone()
        # `tiny` keeps the matrix invertible where every input is zero.
        inputs_CC.diagonal().add_(DAMPING * inputs_CC.diagonal().mean() + torch.finfo(torch.float32).tiny)
        inputs_CC = torch.linalg.cholesky(inputs_CC)  # the sum is freed before the inverse is made
        self.inverse_CC = torch.cholesky_inverse(inputs_CC)
        self.weight_RC = _whitened(weight_RC, own)
        self.loss = 0.0

    def costs_of_one(self) -> Tensor:
        """Return the loss [C] that each single input would cost next; meaningless for inputs that are gone."""
        return 0.5 * self.weight_RC.square().sum(0) / self.inverse_CC.diagonal()

    def cost(self, columns: Tensor) -> float:
        """Return the loss that the given inputs would cost next, together."""
        return 0.5 * float((self.weight_RC[:, columns] @ self._block(columns) * self.weight_RC[:, columns]).sum())

    def remove(self, columns: Tensor) -> float:
        """Remove the given inputs and adjust the others; returns the loss so far."""
        block = self._block(columns)
        change_RS = self.weight_RC[:, columns] @ block
        self.loss += 0.5 * float((change_RS * self.weight_RC[:, columns]).sum())
        rows_SC = self.inverse_CC[columns]
        # In place: writing, reading and freeing the products took four fifths of the time of a step.
        self.weight_RC.addmm_(change_RS, rows_SC, alpha=-1)
        self.inverse_CC.addmm_(rows_SC.T, block @ rows_SC, alpha=-1)
        # What the two updates leave here is zero but for rounding. An exact zero can't leak into later steps, and a one
        # on the diagonal can be divided by.
        self.weight_RC[:, columns] = 0.0
        self.inverse_CC[columns] = 0.0
        self.inverse_CC[:, columns] = 0.0
        self.inverse_CC[columns, columns] = 1.0
        return self.loss

    def _block(self, columns: Tensor) -> Tensor:
        block_SS: Tensor = torch.linalg.inv(self.inverse_CC[columns][:, columns])
        return block_SS


def _whitened(weight_RC: Tensor, own: SecondMoments) -> Tensor:
    """Return the weight in coordinates in which B is the identity, so that a cost is a sum of squares."""
    # By eigenvalues and not by Cholesky: B has no full rank where outputs outnumber tokens. Rounding can leave an
    # eigenvalue just below zero.
    values, vectors_RR = torch.linalg.eigh(own.gradients_RR)
    whitened_RC: Tensor = (vectors_RR * values.clamp(min=0).sqrt()).T @ weight_RC.detach().float()
    return whitened_RC


def losses_in_order(order: Sequence[Tensor], removal: Removal | Elimination) -> list[float]:
    """Return the losses after the first 0, 1, 2, … of the given sets of inputs have gone, in nats a token."""
    return [0.0, *(removal.remove(columns) for columns in order)]


def channel_losses(weight_RC: Tensor, own: SecondMoments) -> Tensor:
    """Return for each input the loss [C] once it is gone, when the cheapest go first; float64, nats a token."""
    elimination, losses_C = Elimination(weight_RC, own), torch.zeros(weight_RC.shape[1], dtype=torch.float64)
    alive_C = torch.ones(weight_RC.shape[1], dtype=torch.bool, device=weight_RC.device)
    while bool(alive_C.any()):
        costs_C = elimination.costs_of_one().masked_fill(~alive_C, float("inf"))
        order = torch.argsort(costs_C)[: min(TOGETHER, int(alive_C.sum()))]
        before = elimination.loss
        after = elimination.remove(order)
        # Within a step the joint cost is spread as the single costs are, all of which may be zero.
        steps = costs_C[order].double().cumsum(0)
        losses_C[order.cpu()] = (before + (after - before) * steps / steps[-1].clamp(min=1e-300)).cpu()
        alive_C[order] = False
    return losses_C


def block_losses(weight_RC: Tensor, own: SecondMoments, rounds: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return for each block of `width` adjacent inputs the loss once it is gone; float64, nats a token.

    Args:
        weight_RC: the weight of the map.
        own: the second moments of the map.
        rounds: the blocks in sets; in each round every set loses its cheapest block.
        width: the number of inputs in a block.
    """
    elimination, losses = Elimination(weight_RC, own), torch.zeros(weight_RC.shape[1] // width, dtype=torch.float64)
    left = [list(blocks) for blocks in rounds]
    while any(left):
        chosen = []
        for blocks in left:
            costs = [elimination.cost(_columns([block], width, weight_RC)) for block in blocks]
            chosen.append(blocks.pop(costs.index(min(costs))))
        losses[chosen] = elimination.remove(_columns(chosen, width, weight_RC))
    return losses


def _columns(blocks: Sequence[int], width: int, like: Tensor) -> Tensor:
    firsts = torch.tensor(blocks, device=like.device)[:, None] * width
    return (firsts + torch.arange(width, device=like.device)).flatten()

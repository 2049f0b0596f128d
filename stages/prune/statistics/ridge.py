"""Least squares from sums of products, drawn towards the weights that are there.

Shape legend: R outputs and C inputs of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
"""λ as a share of the mean of the products' diagonal."""


def ridge_solved(products_CC: Tensor, cross_CR: Tensor, prior_RC: Tensor, square: Tensor | None = None) -> Tensor:
    """Return the weight [R, C] in float32 of least squares, drawn towards `prior_RC` by `DAMPING`.

    Args:
        products_CC: the sum of x xᵀ over tokens, x being the inputs.
        cross_CR: the sum of x yᵀ, y being the wanted outputs.
        prior_RC: the weight that the text leaves a column at where it says nothing of it.
        square: the sum of squares of an input that `DAMPING` is a share of; None takes the mean of these inputs.
    """
    # Sums stand in for the means of the formula: the number of tokens cancels. `tiny` keeps the matrix positive
    # definite where every input is zero.
    square = products_CC.diagonal().mean() if square is None else square
    ridge = DAMPING * square + torch.finfo(torch.float32).tiny
    normal_CC = products_CC.clone()
    normal_CC.diagonal().add_(ridge)
    right_CR = cross_CR + ridge * prior_RC.float().T
    return torch.cholesky_solve(right_CR, torch.linalg.cholesky(normal_CC)).T

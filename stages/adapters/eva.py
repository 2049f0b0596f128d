"""EVA: Explained Variance Adaptation, a start of A from what each layer is given (arXiv 2410.07170).

    X = U S Vᵀ;    A0 = V_rᵀ,  B0 = 0        X: the inputs of the layer, one token a row

So A begins with the r directions that explain most of the inputs' second moment, and the model begins as it was.
Deviations: every layer keeps its rank, where the paper can share ranks out among layers by the variance they explain;
and all tokens are taken at once, where the paper updates the directions batch by batch until they settle. A0's rows
have norm 1 and meet the inputs' strongest directions, so A x is larger than LoRA's and wants a lower rate.

Few directions of many are found by a randomised decomposition (Halko et al., arXiv 0909.4061), which takes a tenth of
the exact one's time. Its random numbers come from the recovery's seed.

Shape legend: T tokens, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


MORE = 32
"""Directions beyond r that the randomised decomposition looks for, and then leaves out."""
ITERATIONS = 8
"""Its subspace iterations, on XᵀX."""


def directions(inputs_TI: Tensor, rank: int) -> Tensor:
    """Return the first `rank` right-singular vectors of the inputs, [R, I], in float32; R is at most T.

    They are exact where r is not small against T or I, and otherwise explain about as much of the second moment (a test
    allows a thousandth less).
    """
    from torch import linalg

    tokens, features = inputs_TI.shape
    if tokens >= features:
        return _leading(inputs_TI.T @ inputs_TI, rank).T.contiguous()
    # Those of XXᵀ are fewer. Orthonormal even where the inputs have fewer than r directions.
    leading_IR: Tensor = linalg.qr(inputs_TI.double().T @ _leading(inputs_TI @ inputs_TI.T, rank).double())[0]
    return leading_IR.T.float()


def _leading(moment_NN: Tensor, rank: int) -> Tensor:
    """Return the first eigenvectors of a symmetric matrix, [N, R], in float32."""
    import torch

    from stages.adapters.randomised import leading

    if 4 * (rank + MORE) < len(moment_NN):
        return leading(moment_NN, rank + MORE, ITERATIONS)[0][:, :rank]
    vectors_NN: Tensor = torch.linalg.eigh(moment_NN.double())[1]
    return vectors_NN.flip(1)[:, :rank].float()

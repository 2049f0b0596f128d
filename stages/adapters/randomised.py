"""The leading part of a singular value decomposition by random projection (Halko et al., arXiv 0909.4061).

Algorithms 4.4 and 5.1 of the paper, as `torch.svd_lowrank` has them. That one draws its random numbers on the matrix's
device. Here they are drawn on the processor, so that a GPU starts from the same ones.

Shape legend: M rows, N columns, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import qr, svd


def leading(matrix_MN: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [M, R], S [R] and V [N, R]; more subspace iterations are more exact. torch's seed decides the rest."""
    if matrix_MN.shape[0] < matrix_MN.shape[1]:
        v_NR, s_R, u_MR = leading(matrix_MN.mH, rank, iterations)
        return u_MR, s_R, v_NR
    drawn_NR = torch.randn(matrix_MN.shape[1], rank, dtype=matrix_MN.dtype).to(matrix_MN.device)
    basis_MR = qr(matrix_MN @ drawn_NR).Q
    for _ in range(iterations):
        basis_MR = qr(matrix_MN @ qr(matrix_MN.mH @ basis_MR).Q).Q
    inner_RR, s_R, vt_RN = svd(basis_MR.mH @ matrix_MN, full_matrices=False)
    return basis_MR @ inner_RR, s_R, vt_RN.mH

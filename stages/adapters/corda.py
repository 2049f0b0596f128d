"""CorDA: Context-Oriented Decomposition Adaptation, a start of A and B from a layer's weight and inputs (2406.05223).

    W C = U S Vᵀ;    B0 = U_r (S_r / s)^½,   A0 = (S_r / s)^½ V_rᵀ C⁻¹,    h = (W - s B0 A0) x + s B A x

C is the second moment of the layer's inputs. "instruction" trains the r largest components, which matter most on the
text that is read (the paper's instruction-previewed mode). "knowledge" trains the r smallest and freezes what matters
(its knowledge-preserved mode).

V_rᵀ C⁻¹ = S_r⁻¹ U_rᵀ W, so nothing is inverted here and s B0 A0 = U_r U_rᵀ W. C is divided by the mean of its diagonal,
since its scale would decide how B0 A0 is shared out among the two, and 0.01 is added to its diagonal, as the authors'
code does. No other deviations. How the split weight is saved and merged is `.split`'s part.

Shape legend: T tokens, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("knowledge", "instruction")
DAMPING = 0.01
"""Added to the diagonal of C, whose mean is 1."""


def oriented(weight_OI: Tensor, inputs_TI: Tensor, rank: int, scale: float, mode: str) -> tuple[Tensor, Tensor]:
    """Return B0 [O, R] and A0 [R, I] in float32 for a layer that is given `inputs_TI`; `scale` is s."""
    import torch

    weight_OI = weight_OI.double()
    moment_II = (inputs_TI.T @ inputs_TI).double()
    moment_II /= moment_II.diagonal().mean()
    moment_II.diagonal().add_(DAMPING)
    # In float64, because the smallest components lie many orders of magnitude below the largest.
    u_OK, s_K, _ = torch.linalg.svd(weight_OI @ moment_II, full_matrices=False)
    part = slice(None, rank) if mode == "instruction" else slice(len(s_K) - rank, None)
    # A weight with rows of zeros has components of zero, which can't be divided by.
    s_R = s_K[part].clamp_min(torch.finfo(torch.float64).eps * float(s_K[0]))
    up_OR = u_OK[:, part] * (s_R / scale).sqrt()
    down_RI = (u_OK[:, part].T @ weight_OI) / (s_R * scale).sqrt()[:, None]
    return up_OR.float(), down_RI.float()

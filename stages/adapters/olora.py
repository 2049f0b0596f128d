"""OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models (arXiv 2406.01775).

    W = Q R;    B0 = Q_r,  A0 = R_r,    h = (W - s B0 A0) x + s B A x        s = alpha / r

Q_r has the first r columns of Q and R_r the first r rows of R, so B begins orthonormal. No deviations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.adapters.principal import principal

if TYPE_CHECKING:
    from torch import Tensor


def start(weight_OI: Tensor, rank: int, scale: float, config: Any) -> tuple[Tensor, Tensor]:
    """Return the first columns of Q and rows of R."""
    from torch import linalg

    q_OI, r_II = linalg.qr(weight_OI)
    return q_OI[:, :rank], r_II[:rank]


OLORA = principal(start)

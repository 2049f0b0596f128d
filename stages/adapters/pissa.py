"""PiSSA: Principal Singular Values and Singular Vectors Adaptation (arXiv 2404.02948).

    W = U S V^T;    B0 = U_r (S_r / s)^(1/2),  A0 = (S_r / s)^(1/2) V_r^T,    h = (W - s B0 A0) x + s B A x

So the part with the r largest singular values is trained, and the rest of W is frozen. The paper has s = 1, which is
alpha = r here; at any other alpha the start is the same model.

The decomposition is exact unless `iterations` asks for the randomised one that the paper calls fast (Halko et al.,
arXiv 0909.4061). Its random numbers come from the recovery's seed. No deviations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.adapters.low_rank import LowRankConfig, check_low_rank
from stages.adapters.principal import principal
from stages.common.checks import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True, slots=True)
class PissaConfig(LowRankConfig):
    """LoRA's options, and the exactness of the decomposition."""

    iterations: int = 0
    """Subspace iterations of a randomised decomposition; more iterations are more exact and slower. 0 is the exact
    decomposition, which takes minutes where weights have thousands of rows."""


def start(weight_OI: Tensor, rank: int, scale: float, config: PissaConfig) -> tuple[Tensor, Tensor]:
    """Return B0 and A0, for which `scale` B0 A0 is the best approximation of the weight by this rank."""
    if config.iterations:
        from stages.adapters.randomised import leading

        u_OR, s_R, v_IR = leading(weight_OI, rank, config.iterations)
        vt_RI = v_IR.T
    else:
        from torch.linalg import svd

        u_OR, s_R, vt_RI = svd(weight_OI, full_matrices=False)
    root_R = (s_R[:rank] / scale).sqrt()
    return u_OR[:, :rank] * root_R, root_R[:, None] * vt_RI[:rank]


def check(config: PissaConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    check_low_rank(config)
    require(config.iterations >= 0, "adapter.iterations", "at least 0", config.iterations)


PISSA = replace(principal(start, PissaConfig), check=check)

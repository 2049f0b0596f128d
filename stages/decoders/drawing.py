"""Tokens drawn by their probabilities, at numbers that the caller draws.

torch.multinomial draws one number for each token of the vocabulary, and all of them on one thread.

Shapes: B rows, V vocabulary, R runs of W tokens in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

RUN = 128
"""Tokens of the vocabulary whose probabilities are first summed, so that few sums are looked through."""


def inverted(weight_BV: Tensor, drawn_B: Tensor) -> Tensor:
    """Return the token at which each row's sums of `weight_BV` first exceed that share of the row's total, [B].

    Drawn uniformly from [0, 1), a share gives each token with its share of the total: the inverse of the distribution.
    Sums of runs are looked through first, then the tokens of one run. That is several times cheaper than all sums.
    """
    whole = weight_BV.shape[-1] // RUN * RUN
    runs_BRW = torch.unflatten(weight_BV[:, :whole], 1, (-1, RUN))
    # In float64, because the sums over a vocabulary would round small probabilities away.
    rest_B1 = weight_BV[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
    sums_BR = torch.cat([runs_BRW.sum(-1, dtype=torch.float64), rest_B1], dim=1).cumsum(-1)
    wanted_B1 = drawn_B[:, None] * sums_BR[:, -1:]
    run_B1 = _after(sums_BR, wanted_B1)
    before_B1 = torch.where(run_B1 > 0, sums_BR.gather(1, (run_B1 - 1).clamp_min(0)), 0.0)
    token_BW = run_B1 * RUN + torch.arange(RUN, device=weight_BV.device)
    inside_BW = token_BW < weight_BV.shape[-1]
    weight_BW = weight_BV.gather(1, token_BW.clamp_max(weight_BV.shape[-1] - 1)).double() * inside_BW
    place_B1 = _after(weight_BW.cumsum(-1), wanted_B1 - before_B1)
    # Sums that are no numbers lead behind the last token.
    return (run_B1 * RUN + place_B1)[:, 0].clamp_max(weight_BV.shape[-1] - 1)


def _after(sums_BN: Tensor, wanted_B1: Tensor) -> Tensor:
    """Return the first place whose sum exceeds the wanted one, [B, 1]; none behind the last that adds to the sums."""
    # By rounding the wanted sum may be as large as the last one, which is first reached at a place that adds to it.
    last_B1 = torch.searchsorted(sums_BN, sums_BN[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(sums_BN, wanted_B1, right=True), last_B1)

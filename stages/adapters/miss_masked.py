"""MiSS's layer where the base's weight is masked: zeros of the weight get no update.

    h = (W + [D, D, …, D] ⊙ M) x        M = [W ≠ 0]

PEFT alone would load the same adapter without M, which is another model. The product with M is formed anew in the
backward pass, so it takes the memory of one matrix, not of all.

Shape legend: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from peft.tuners.miss.layer import MissLinear
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stages.adapters.adapter import ADAPTER


class MaskedMiss(MissLinear):  # type: ignore[misc]
    """PEFT's layer with another forward pass; a layer of PEFT's becomes one by its class."""

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Return the adapted layer's output [..., O] for x [..., I]."""
        result: Tensor = self.base_layer(x, *arguments, **options)
        if self.disable_adapters or self.merged:
            return result
        # Dropout is outside of what is computed again, so no random state is kept.
        dropped = self.miss_dropout[ADAPTER](x)
        change: Tensor = checkpoint(
            _product,
            dropped,
            self.base_layer.weight,
            self.miss_block[ADAPTER],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return result + change


def _product(x: Tensor, weight_OI: Tensor, block_RO: Tensor) -> Tensor:
    columns = weight_OI.shape[1]
    shards = -(-columns // block_RO.shape[0])
    update_OI = block_RO.T.repeat(1, shards)[:, :columns] * (weight_OI != 0)
    return F.linear(x, update_OI.to(x.dtype))

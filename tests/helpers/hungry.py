"""Models that need more memory than there is for a pass of many tokens. What runs out is the machine's real memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MORE_THAN_THERE_IS = 1 << 60


def make_hungry(model: nn.Module, fits: int) -> None:
    """Make passes of `model` over more than `fits` tokens need more memory than there is."""

    def hungry(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() > fits:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)

    model.get_input_embeddings().register_forward_pre_hook(hungry)  # type: ignore[operator]

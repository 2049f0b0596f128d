"""Masks of weights: the zeros of the modules that a model directory names as masked.

The prune stage writes the names to pruning.json, the recover stage keeps the zeros, and other stages may show them. No
torch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.files import read_json

if TYPE_CHECKING:
    from torch import Tensor


def masked_modules(directory: Path) -> frozenset[str]:
    """Return the full names of the modules of `directory` whose zeros must stay zeros; empty where none is masked."""
    record = directory / "pruning.json"
    return frozenset(read_json(record).get("masks") or ()) if record.is_file() else frozenset()


def with_mask(weight: Tensor, kept: Tensor) -> Tensor:
    """Return `weight` with zeros exactly where it is not `kept`. A kept zero becomes the smallest normal number."""
    import torch

    # The zeros are the mask, so a kept weight that is zero would be taken for a masked one.
    least = torch.full_like(weight, torch.finfo(weight.dtype).tiny)
    return torch.where(kept, torch.where(weight == 0, least, weight), torch.zeros_like(weight))

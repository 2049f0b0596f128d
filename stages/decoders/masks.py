"""Masks of weights: the zeros of the modules that a model directory names as masked.

What the prune stage wrote in pruning.json, the recover stage keeps and others may show. No torch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.files import read_json

if TYPE_CHECKING:
    from torch import Tensor


def masked_modules(directory: Path) -> frozenset[str]:
    """Return the full names of the modules of `directory` whose zeros must stay zeros; none where nothing is masked."""
    record = directory / "pruning.json"
    return frozenset(read_json(record).get("masks") or ()) if record.is_file() else frozenset()


def with_mask(weight: Tensor, kept: Tensor) -> Tensor:
    """Return `weight` with zeros exactly where it is not `kept`; a kept zero is the smallest normal number instead."""
    import torch

    least = torch.full_like(weight, torch.finfo(weight.dtype).tiny)
    return torch.where(kept, torch.where(weight == 0, least, weight), torch.zeros_like(weight))

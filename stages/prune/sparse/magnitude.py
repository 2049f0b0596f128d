"""Magnitude masks: zeros in place of the smallest weights of each matrix, or of each M consecutive inputs. No data.

llm-compressor's MagnitudePruningModifier is a schedule over training steps, which changes nothing in one shot. Of equal
weights the earlier ones are set to zero, so that the share is met exactly.
"""

from __future__ import annotations

from torch import Tensor


def mask_smallest(weight_OI: Tensor, sparsity: float, zeros: int = 0, of: int = 0) -> None:
    """Set a share `sparsity` of the weights to zero in place, or `zeros` of every `of` consecutive inputs."""
    flat = weight_OI.view(-1, of) if of else weight_OI.view(1, -1)
    count = zeros if of else round(sparsity * weight_OI.numel())
    smallest = flat.abs().argsort(dim=1, stable=True)[:, :count]
    flat.scatter_(1, smallest, 0.0)

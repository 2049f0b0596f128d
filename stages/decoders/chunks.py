"""How many tokens meet the vocabulary at a time.

On a processor few tokens are best, because their logits stay near it. A GPU reads the whole head again for every chunk,
1 GB for a vocabulary of 128k. So there the logits of a chunk fill a number of bytes. No torch here: a plan reads this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BYTES = 1 << 28
"""Bytes of a chunk's logits in float32 on a GPU: 512 tokens for a vocabulary of 128k. A product of so many rows does
two operations a row for every two bytes of the head, 512 a byte, where an H100 does about 250 in the time of reading
one."""


def chunk_size(device: torch.device, vocabulary: int, least: int) -> int:
    """Return the tokens of a chunk on `device`: `least` on a processor, and not fewer elsewhere."""
    return chunk_tokens(device.type, vocabulary, least)


def chunk_tokens(device: str, vocabulary: int, least: int) -> int:
    """Return the same for a device's type by name."""
    return least if device == "cpu" else max(BYTES // (4 * vocabulary), least)

"""The work of a stage, counted from shapes and options before it runs. Seconds follow from it and a machine's speed.

A stage counts its work in `work.py` of its folder. How fast a machine is, and how long earlier stages took, is not
known here. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.decoders.shapes import DecoderShape

CONTEXT = 256
"""Tokens of a sequence, for the share of attention in the work of a token."""
WRITING = 3.0
"""The work of writing one token beside that of reading one: it is one pass for few tokens (docs/speed.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The matrix products of a stage.

    Attributes:
        operations: multiplications and additions, each counted, by precision ("float32", "bfloat16").
        efficiency: the share of the machine's rate of matrix products that the stage reached where it was measured,
            all of its other work included.
        kind: what sets the stage's time a product apart: its method, loss or protocol.
    """

    operations: Mapping[str, float]
    efficiency: float
    kind: str

    @property
    def total(self) -> float:
        """The operations of all precisions."""
        return sum(self.operations.values())

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Return how long the work takes at these `rates`, operations a second by precision."""
        return sum(count / rates[dtype] for dtype, count in self.operations.items()) / self.efficiency


def forward(shape: DecoderShape) -> float:
    """Return the operations of one token's forward pass through a decoder of `shape`, logits included."""
    return 2.0 * shape.multiply_accumulates(CONTEXT)

"""Ways in which the weights of a frozen model are held in memory. No torch here: a plan reads these."""

from __future__ import annotations

from importlib.util import find_spec

from stages.common.choices import lookup
from stages.errors import UserError

STORED = "stored"
WAYS = {STORED: "in the precision of the computation", "8bit": "in 8 bits", "nf4": "in 4 bits (NF4)"}
"""The ways, with the words that a sentence has on each. `.quantised` has the two that are no plain tensors."""

BLOCKS = {"nf4": 64, "8bit": 256}
"""Weights that share one scale, by the way in which they are held."""
BITS = {"nf4": 4, "8bit": 8}
"""Bits of a weight, without its share of the scale."""


def bytes_of_weights(count: int, way: str, each: int) -> int:
    """Return the bytes of so many weights of linear layers; `each` is those of a number as it is stored."""
    if way == STORED:
        return count * each
    return count * BITS[way] // 8 + 4 * -(-count // BLOCKS[way])


def check_holding(where: str, way: str) -> None:
    """Raise a `UserError` for an unknown way, or one that this installation lacks; `where` is the option's name."""
    lookup(f"way to hold weights ({where})", way, WAYS)
    if way != STORED and find_spec("bitsandbytes") is None:
        raise UserError(
            f"{where}={way} needs bitsandbytes, which is not installed. Install it with pip install -e '.[quantised]', "
            f"or set {where}={STORED}."
        )

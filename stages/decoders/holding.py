"""Ways in which the weights of a frozen model are held in memory. No torch here: a plan reads these."""

from __future__ import annotations

from importlib.util import find_spec

from stages.common.choices import lookup
from stages.errors import UserError

STORED = "stored"
WAYS = {STORED: "in the precision of the computation", "8bit": "in 8 bits", "nf4": "in 4 bits (NF4)"}
"""The ways, with the words that a sentence has on each. `.quantised` has the two that are no plain tensors."""


def check_holding(where: str, way: str) -> None:
    """Raise a `UserError` for an unknown way, or one that this installation lacks; `where` is the option's name."""
    lookup(f"way to hold weights ({where})", way, WAYS)
    if way != STORED and find_spec("bitsandbytes") is None:
        raise UserError(
            f"{where}={way} needs bitsandbytes, which is not installed. Install it with pip install -e '.[quantised]', "
            f"or set {where}={STORED}."
        )

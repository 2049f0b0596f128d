"""Every method of masking by name. No torch here: a plan reads this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.prune.config import PruneConfig
from stages.prune.sparse import recipe
from stages.prune.sparse.config import SparseMLConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """A method that sets weights to zero; `stages.prune.sparse.stage:run` runs it."""

    config: type[PruneConfig]
    """The dataclass of its options."""
    check: Callable[[Any], None]
    """Raises a `UserError` where an option is outside its range; called before anything is loaded."""
    settled: Callable[[Any], PruneConfig]
    """Returns the options with a recipe's content in place of its name, as they enter a key."""
    reads_text: bool = True
    """Whether it reads calibration tokens."""


MASKS: dict[str, Masks] = {"sparseml": Masks(config=SparseMLConfig, check=recipe.check, settled=recipe.settled)}

"""What an evaluation's options may be. No torch here, so that a plan finds the mistake before anything is built."""

from __future__ import annotations

from stages.errors import UserError
from stages.evaluate.config import CostConfig


def check_cost(config: CostConfig) -> None:
    """Check the options of the cost stage.

    Raises:
        UserError: an option is outside its range; the message has the option, the rule and the value.
    """
    for name in ("prompt_tokens", "new_tokens", "repeats"):
        if getattr(config, name) < 1:
            raise UserError(f"evaluate.cost.{name} must be at least 1, and is {getattr(config, name)}.")
    sizes = config.batch_sizes
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise UserError(
            f"evaluate.cost.batch_sizes must be at least one size of at least 1, each once, and is {sizes}."
        )

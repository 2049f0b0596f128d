"""Objectives by name. No torch here: a plan reads this; building one imports it."""

from __future__ import annotations

from stages.common.choices import lookup
from stages.recover.config import RecoverStageConfig
from stages.recover.objectives import cross_entropy, distillation
from stages.recover.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy.CROSS_ENTROPY,
    "distillation": distillation.DISTILLATION,
}


def objective_of(config: RecoverStageConfig) -> Objective:
    """Return the objective that `config` names, its options checked.

    Raises:
        UserError: the name is unknown or an option is outside its range.
    """
    objective = lookup("objective (recover.objective)", config.recover.objective, OBJECTIVES)
    objective.check(config)
    return objective

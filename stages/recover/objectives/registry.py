"""Every objective by name. No torch here: a plan reads this; building an objective imports it.

Adding an objective takes a file, a line here, and for options of its own a field of its name in
`stages.recover.config`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stages.common.choices import lookup
from stages.recover.config import RecoverConfig
from stages.recover.objectives import cross_entropy, distillation, on_policy
from stages.recover.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy.CROSS_ENTROPY,
    "distillation": distillation.DISTILLATION,
    "on_policy": on_policy.ON_POLICY,
}


def objective_of(recover: RecoverConfig) -> tuple[Objective, Any]:
    """Return the objective that `recover` names, and its checked options, which are None where it has none.

    Raises:
        UserError: the name is unknown or an option is outside its range.
    """
    objective = lookup("objective (recover.objective)", recover.objective, OBJECTIVES)
    options = getattr(recover, recover.objective) if objective.config else None
    objective.check(options)
    return objective, options


def decisive(recover: RecoverConfig) -> RecoverConfig:
    """Return `recover` with the options of all other objectives at their defaults, so that they do not affect a key."""
    others = {name: objective.config for name, objective in OBJECTIVES.items() if name != recover.objective}
    return replace(recover, **{name: config() for name, config in others.items() if config is not None})

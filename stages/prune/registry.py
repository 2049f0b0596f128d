"""Every method of pruning by name: criteria that rank groups, and masks that set weights to zero. No torch here."""

from __future__ import annotations

from stages.prune.criteria.registry import CRITERIA, Criterion
from stages.prune.sparse.registry import MASKS, Masks

METHODS: dict[str, Criterion | Masks] = {**CRITERIA, **MASKS}

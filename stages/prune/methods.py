"""Every way of pruning by name: criteria that rank groups, and masks that set weights to zero. No torch here."""

from __future__ import annotations

from stages.prune.criteria import CRITERIA, Criterion
from stages.prune.sparse import MASKS, Masks

METHODS: dict[str, Criterion | Masks] = {**CRITERIA, **MASKS}

"""Distillation: the pruned model should find every token as likely as the dense model does.

Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531): the forward divergence
T² KL(teacher ‖ student) of the probabilities at temperature T, mixed with cross-entropy; `.divergence` has the formula.
The teacher reads the same packed batch as the student, without dropout and without gradients (`.teacher`). Where the
paper weighs two sums freely, `weight` is a share, so that the loss keeps its size whatever the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.checks import require
from stages.errors import UserError
from stages.recover.config import RecoverStageConfig
from stages.recover.objectives.objective import Objective, softcap_of
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.recover.objectives.objective import Summed
    from stages.rows.packing import Batch


def check(config: RecoverStageConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    options, where = config.recover.distillation, "recover.distillation"
    temperature, count = options.temperature, options.teacher_top_k
    require(0 < temperature < math.inf, f"{where}.temperature", "above 0", temperature)
    require(0 < options.weight <= 1, f"{where}.weight", "in (0, 1], a share of the loss", options.weight)
    require(count is None or count >= 1, f"{where}.teacher_top_k", "at least 1 token, or null for all", count)
    if options.cache_teacher and count is None:
        raise UserError(
            f"{where}.cache_teacher=true would keep the whole vocabulary's probabilities for every token. Keep the "
            f"likeliest: {where}.teacher_top_k=64, or compute them on the fly: {where}.cache_teacher=false."
        )


def facts(config: RecoverStageConfig) -> JSON:
    """Return temperature, weight and how many tokens the teacher names."""
    options = config.recover.distillation
    return {
        "temperature": options.temperature,
        "weight": options.weight,
        "teacher_top_k": options.teacher_top_k,
    }


def build(model: PreTrainedModel, config: RecoverStageConfig, teacher: Path | None, context: Context) -> Summed:
    """Return the mixture of divergence and cross-entropy, and both beside it.

    Raises:
        UserError: there is no teacher.
    """
    from stages.recover.objectives.divergence import summed_mixture
    from stages.recover.objectives.teacher import Teacher

    if teacher is None:
        raise UserError("distillation needs a teacher: the recover stage's input `teacher`, the dense model.")
    options, taught_by = config.recover.distillation, Teacher(teacher, config, context)

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        loss, cross_entropy, divergence = summed_mixture(
            batch.predicting(hidden_TE),
            model.get_output_embeddings(),
            batch.labels_N,
            taught_by.targets(batch),
            temperature=options.temperature,
            share=options.weight,
            softcap=softcap_of(model),
        )
        return {"loss": loss, "cross_entropy": cross_entropy, "divergence": divergence}

    return summed


DISTILLATION = Objective(check=check, taught=True, facts=facts, build=build)

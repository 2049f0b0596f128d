"""Distillation: the pruned model learns to give every token the probability that the dense model gives it.

Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531). The loss is the forward divergence
T² KL(teacher ‖ student) of the probabilities at temperature T, mixed with cross-entropy; `.divergence` has the formula.
The teacher reads the same packed batch as the student, without dropout and without gradients (`.teacher`). The paper
weighs two sums freely. Here `weight` is a share, so that the loss keeps its size whatever the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.checks import require
from stages.errors import UserError
from stages.recover.objectives.objective import Objective
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.recover.objectives.objective import Summed
    from stages.rows.packing import Batch


@dataclass(kw_only=True, slots=True)
class DistillationConfig:
    """Options of `objective=distillation`; without it they decide nothing."""

    temperature: float = 1.0
    """T, by which the logits of teacher and student are divided; above 1, small probabilities weigh more."""
    weight: float = 1.0
    """Share of the divergence in its mixture with cross-entropy, in (0, 1]; 1 is divergence alone."""
    teacher_top_k: int | None = None
    """Number k of likeliest tokens whose probabilities the teacher gives one by one; the others are one sum. Null: all
    tokens one by one."""
    cache_teacher: bool = False
    """Whether to keep the teacher's probabilities on disk (8 k bytes a labelled token), for all recoveries on the same
    documents."""


def check(options: DistillationConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    where, temperature, count = "recover.distillation", options.temperature, options.teacher_top_k
    require(0 < temperature < math.inf, f"{where}.temperature", "above 0", temperature)
    require(0 < options.weight <= 1, f"{where}.weight", "in (0, 1], a share of the loss", options.weight)
    require(count is None or count >= 1, f"{where}.teacher_top_k", "at least 1 token, or null for all", count)
    if options.cache_teacher and count is None:
        raise UserError(
            f"{where}.cache_teacher=true would keep the whole vocabulary's probabilities for every token. Keep the "
            f"likeliest: {where}.teacher_top_k=64, or compute them on the fly: {where}.cache_teacher=false."
        )


def facts(options: DistillationConfig) -> JSON:
    """Return the temperature, the weight, and the number of tokens that the teacher names."""
    return {
        "temperature": options.temperature,
        "weight": options.weight,
        "teacher_top_k": options.teacher_top_k,
    }


def sentences(options: DistillationConfig, teacher: str) -> list[str]:
    """Return one sentence, with the teacher and the composition of the loss."""
    named, own = options.teacher_top_k, f"{1 - options.weight:.1%}".replace("%", " %")
    rest = f", its {named:,} likeliest tokens each by itself and all others as one" if named else ""
    share = f"; {own} of the loss is cross-entropy of the tokens themselves" if options.weight < 1 else ""
    return [f"Distilled from {teacher} at temperature {options.temperature:g}, weight {options.weight:g}{rest}{share}."]


def build(
    model: PreTrainedModel,
    options: DistillationConfig,
    teacher: Path | PreTrainedModel | None,
    dtype: str,
    context: Context,
) -> Summed:
    """Return the loss, the mixture of divergence and cross-entropy, with both of its parts.

    Raises:
        UserError: there is no teacher.
    """
    from stages.decoders.logits import Logits
    from stages.recover.objectives.divergence import summed_mixture
    from stages.recover.objectives.teacher import Teacher

    if teacher is None:
        raise UserError("distillation needs a teacher: the recover stage's input `teacher`, the dense model.")
    logits = Logits.of(model)
    taught_by = Teacher(
        teacher,
        dtype,
        context,
        temperature=options.temperature,
        top_k=options.teacher_top_k,
        cached=options.cache_teacher,
    )

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        loss, cross_entropy, divergence = summed_mixture(
            batch.predicting(hidden_TE),
            model.get_output_embeddings(),
            batch.labels_N,
            taught_by.targets(batch),
            temperature=options.temperature,
            share=options.weight,
            logits=logits,
        )
        return {"loss": loss, "cross_entropy": cross_entropy, "divergence": divergence}

    return summed


DISTILLATION = Objective(
    config=DistillationConfig, check=check, taught=True, facts=facts, sentences=sentences, build=build
)

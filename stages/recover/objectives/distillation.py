"""Distillation: the pruned model learns to give every token the probability that the dense model gives it.

Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531). The loss is the forward divergence
T² KL(teacher ‖ student) of the probabilities at temperature T, mixed with cross-entropy. It may be the reverse one or
Jensen-Shannon's instead; `.divergence` has the formulas.
The teacher reads the same packed batch as the student, without dropout and without gradients (`.teacher`). The paper
weighs two sums freely. Here `weight` is a share, so that the loss keeps its size whatever the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.checks import require
from stages.common.choices import lookup
from stages.common.later import LATER
from stages.decoders.holding import STORED, WAYS, check_holding
from stages.errors import UserError
from stages.recover.objectives.objective import Objective
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.recover.objectives.objective import Summed
    from stages.recover.objectives.teacher import Teacher
    from stages.rows.packing import Batch

DIVERGENCES = {
    "forward": "",
    "reverse": ", by the reverse divergence",
    "jensen": ", by the Jensen-Shannon divergence of beta {beta:g}",
}
"""The divergences by name, with the words that a sentence has on each."""


@dataclass(kw_only=True, slots=True)
class DistillationConfig:
    """Options of `objective=distillation`; without it they decide nothing."""

    temperature: float = 1.0
    """T, by which the logits of teacher and student are divided; above 1, small probabilities weigh more."""
    weight: float = 1.0
    """Share of the divergence in its mixture with cross-entropy, in (0, 1]; 1 is divergence alone."""
    divergence: str = "forward"
    """What is minimised: "forward" KL(teacher ‖ student) asks for every token that the teacher finds likely, "reverse"
    KL(student ‖ teacher) for no token that the teacher finds unlikely; "jensen" lies between them."""
    beta: float = 0.5
    """β of the jensen divergence, in (0, 1): nearer to 0 it is forward's direction, nearer to 1 reverse's."""
    teacher_top_k: int | None = None
    """Number k of likeliest tokens whose probabilities the teacher gives one by one; the others are one sum. Null: all
    tokens one by one."""
    cache_teacher: bool = False
    """Whether to keep the teacher's probabilities on disk (8 k bytes a labelled token), for all recoveries on the same
    documents."""
    teacher_weights: str = field(default=STORED, metadata=LATER)
    """The teacher's weights: "stored" is in the precision of the computation, "nf4" in 4 bits, "8bit" in 8."""


def check(options: DistillationConfig, where: str = "recover.distillation") -> None:
    """Raise a `UserError` for an option outside its range; `where` is the options' place, for the errors."""
    temperature, count = options.temperature, options.teacher_top_k
    require(0 < temperature < math.inf, f"{where}.temperature", "above 0", temperature)
    require(0 < options.weight <= 1, f"{where}.weight", "in (0, 1], a share of the loss", options.weight)
    check_divergence(options.divergence, options.beta, where)
    check_holding(f"{where}.teacher_weights", options.teacher_weights)
    require(count is None or count >= 1, f"{where}.teacher_top_k", "at least 1 token, or null for all", count)
    if options.cache_teacher and count is None:
        raise UserError(
            f"{where}.cache_teacher=true would keep the whole vocabulary's probabilities for every token. Keep the "
            f"likeliest: {where}.teacher_top_k=64, or compute them on the fly: {where}.cache_teacher=false."
        )


def check_divergence(name: str, beta: float, where: str) -> None:
    """Raise a `UserError` for an unknown divergence, or a `beta` outside (0, 1)."""
    lookup(f"divergence ({where}.divergence)", name, DIVERGENCES)
    require(0 < beta < 1, f"{where}.beta", "in (0, 1)", beta)


def worded(divergence: str, beta: float) -> str:
    """Return what a sentence says of a divergence; nothing of the forward one."""
    return DIVERGENCES[divergence].format(beta=beta)


def facts(options: DistillationConfig) -> JSON:
    """Return the temperature, the weight, the divergence, and the number of tokens that the teacher names."""
    return {
        "temperature": options.temperature,
        "weight": options.weight,
        "divergence": options.divergence,
        "teacher_top_k": options.teacher_top_k,
    } | {
        name: getattr(options, name)
        for name, told in (
            ("beta", options.divergence == "jensen"),
            ("teacher_weights", options.teacher_weights != STORED),
        )
        if told
    }


def sentences(options: DistillationConfig, teacher: str) -> list[str]:
    """Return one sentence, with the teacher and the composition of the loss."""
    named, own = options.teacher_top_k, f"{1 - options.weight:.1%}".replace("%", " %")
    rest = f", its {named:,} likeliest tokens each by itself and all others as one" if named else ""
    share = f"; {own} of the loss is cross-entropy of the tokens themselves" if options.weight < 1 else ""
    kind = worded(options.divergence, options.beta)
    size = f"at temperature {options.temperature:g}, weight {options.weight:g}"
    held = "" if options.teacher_weights == STORED else f", its weights {WAYS[options.teacher_weights]},"
    return [f"Distilled from {teacher}{held} {size}{rest}{kind}{share}."]


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
    return on_rows(model, options, taught_by(teacher, options, dtype, context))


def taught_by(
    teacher: Path | PreTrainedModel | None, options: DistillationConfig, dtype: str, context: Context
) -> Teacher:
    """Return the teacher, asked as `options` have it.

    Raises:
        UserError: there is no teacher, or it is to be held in few bits and sharded.
    """
    from stages.recover.objectives.teacher import Teacher

    if teacher is None:
        raise UserError("distillation needs a teacher: the recover stage's input `teacher`, the dense model.")
    if context.engine == "fsdp" and options.teacher_weights != STORED:
        raise UserError(
            f"teacher_weights={options.teacher_weights} holds the teacher whole on each worker, and runtime=fsdp shards"
            f" models. Set runtime=ddp, or teacher_weights={STORED}."
        )
    return Teacher(
        teacher,
        dtype,
        context,
        temperature=options.temperature,
        top_k=options.teacher_top_k,
        cached=options.cache_teacher,
        held=options.teacher_weights,
    )


def on_rows(model: PreTrainedModel, options: DistillationConfig, teacher: Teacher) -> Summed:
    """Return the loss on the labels of rows."""
    from stages.decoders.logits import Logits
    from stages.recover.objectives.divergence import divergence_of, summed_mixture

    logits, diverging = Logits.of(model), divergence_of(options.divergence, options.beta)

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        loss, cross_entropy, divergence = summed_mixture(
            batch.predicting(hidden_TE),
            model.get_output_embeddings(),
            batch.labels_N,
            teacher.targets(batch),
            temperature=options.temperature,
            share=options.weight,
            logits=logits,
            diverging=diverging,
        )
        return {"loss": loss, "cross_entropy": cross_entropy, "divergence": divergence}

    return summed


DISTILLATION = Objective(
    config=DistillationConfig, check=check, taught=True, facts=facts, sentences=sentences, build=build
)

"""On-policy distillation: the pruned model writes, and learns how likely the dense model finds what it wrote.

Generalised knowledge distillation (GKD, arXiv 2306.13649, algorithm 1) and MiniLLM (arXiv 2306.08543). A share λ of the
steps is on-policy. In such a step the pruned model continues the beginnings of the step's rows by sampling. The loss is
a divergence from the dense model's probabilities over the whole vocabulary, at the tokens that were written. All other
steps distil on the rows themselves (`.distillation`).

    L = (1 - λ) E_rows D(rows) + λ E_written D(written)

No gradient goes through the sampling, as in GKD; MiniLLM adds a policy gradient. Where GKD draws at random which steps
are on-policy, they are spread evenly here. The random numbers of a step's text come from the seed, the step and the
document's place in the step, so a resumed run writes the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.checks import require
from stages.errors import UserError
from stages.recover.objectives import distillation
from stages.recover.objectives.distillation import DistillationConfig, check_divergence, worded
from stages.recover.objectives.objective import Objective
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.inference.generator import Written
    from stages.recover.objectives.objective import Rewrite, Summed
    from stages.rows.packing import Batch, Document

REMEDY = "Free some of it, or set a smaller recover.on_policy.new_tokens or a shorter recover.sequence_length."
"""What may help where the writing of a single document does not fit in memory."""


@dataclass(kw_only=True, slots=True)
class OnPolicyConfig:
    """Options of `objective=on_policy`; without it they decide nothing."""

    share: float = 0.5
    """λ, the share of the steps that are on-policy, in (0, 1]. Such a step takes longer: its text has to be written."""
    divergence: str = "reverse"
    """What is minimised at the tokens that were written: "reverse", "forward" or "jensen", as in distillation."""
    beta: float = 0.5
    """β of the jensen divergence, in (0, 1)."""
    temperature: float = 1.0
    """Temperature at which the pruned model's tokens are drawn, above 0. Both models' probabilities in the loss are at
    temperature 1."""
    new_tokens: int = 64
    """The most tokens that are written after a beginning."""
    prompt_tokens: int = 32
    """Tokens of the beginning of plain text, at most half of it. A row with a prompt is continued from its prompt."""
    rows: DistillationConfig = field(default_factory=DistillationConfig)
    """Options of the steps on the rows themselves, as those of `objective=distillation`."""


def check(options: OnPolicyConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    where = "recover.on_policy"
    require(0 < options.share <= 1, f"{where}.share", "in (0, 1], a share of the steps", options.share)
    require(0 < options.temperature < math.inf, f"{where}.temperature", "above 0", options.temperature)
    require(options.new_tokens >= 1, f"{where}.new_tokens", "at least 1 token", options.new_tokens)
    require(options.prompt_tokens >= 1, f"{where}.prompt_tokens", "at least 1 token", options.prompt_tokens)
    check_divergence(options.divergence, options.beta, where)
    distillation.check(options.rows, f"{where}.rows")


def facts(options: OnPolicyConfig) -> JSON:
    """Return the options of the on-policy steps, and under "rows" those of the others."""
    own = {name: getattr(options, name) for name in ("share", "divergence", "temperature", "new_tokens")}
    beta = {"beta": options.beta} if options.divergence == "jensen" else {}
    return own | beta | {"rows": distillation.facts(options.rows)}


def sentences(options: OnPolicyConfig, teacher: str) -> list[str]:
    """Return the sentence of distillation, where steps are on rows, and one on the other steps."""
    share = f"{options.share:.1%}".replace("%", " %")
    said = (
        f"{share} of the steps are on-policy: the pruned model wrote up to {options.new_tokens:,} tokens at "
        f"temperature {options.temperature:g}, and learnt from {teacher} at these"
        f"{worded(options.divergence, options.beta)}."
    )
    return [*(distillation.sentences(options.rows, teacher) if options.share < 1 else []), said]


def build(
    model: PreTrainedModel,
    options: OnPolicyConfig,
    teacher: Path | PreTrainedModel | None,
    dtype: str,
    context: Context,
) -> Summed:
    """Return the loss: a divergence where the labels were written by the model, distillation's loss elsewhere.

    Raises:
        UserError: there is no teacher, or the model is sharded.
    """
    from stages.decoders.logits import Logits
    from stages.recover.objectives.divergence import divergence_of, summed_mixture

    if context.engine == "fsdp":
        raise UserError("recover.objective=on_policy needs the whole model on each worker. Set runtime=ddp.")
    taught_by = distillation.taught_by(teacher, options.rows, dtype, context)
    on_rows = distillation.on_rows(model, options.rows, taught_by)
    logits, diverging = Logits.of(model), divergence_of(options.divergence, options.beta)

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if not batch.written:
            return on_rows(hidden_TE, batch)
        loss, _, _ = summed_mixture(
            batch.predicting(hidden_TE),
            model.get_output_embeddings(),
            batch.labels_N,
            taught_by.exact(batch, temperature=1.0),
            logits=logits,
            diverging=diverging,
        )
        return {"loss": loss, "on_policy_divergence": loss.detach()}

    return summed


def rewrites(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: OnPolicyConfig, dtype: str, seed: int
) -> Rewrite:
    """Return what lets `model` continue the beginnings of the documents of on-policy steps."""
    from stages.inference.fitting import InParts, continued
    from stages.inference.generator import Generator, Sampling
    from stages.inference.scorer import Scorer
    from stages.recover.asking import asking

    with asking(model, dtype):
        generator = Generator(Scorer(model, tokenizer, joined=False))
    room = generator.scorer.encoder.max_length - options.new_tokens
    require(
        room >= 1,
        "recover.on_policy.new_tokens",
        f"below the {room + options.new_tokens} tokens that the model reads",
        options.new_tokens,
    )
    in_parts = InParts(REMEDY)

    def rewritten(documents: list[Document], step: int) -> list[Document]:
        if not on_policy(options.share, step):
            return documents
        beginnings = [beginning(document, options.prompt_tokens)[-room:] for document in documents]
        seeds = [f"{seed} {step} {place}" for place in range(len(documents))]
        with asking(model, dtype):
            sampling = Sampling(options.temperature, seeds)
            found = continued(generator, in_parts, beginnings, new_tokens=options.new_tokens, sampling=sampling)
        return [_continued(*each) for each in zip(documents, beginnings, found, strict=True)]

    return rewritten


def on_policy(share: float, step: int) -> bool:
    """Return whether the step after `step` others is on-policy: of any first n steps, n times `share`, rounded down."""
    return math.floor((step + 1) * share) > math.floor(step * share)


def beginning(document: Document, tokens: int) -> list[int]:
    """Return the tokens that are continued: a row's prompt, or the first `tokens` of plain text, at most half of it."""
    return document.ids[: document.prompt or max(min(tokens, len(document.ids) // 2), 1)]


def _continued(document: Document, beginning: list[int], written: Written) -> Document:
    # The end of text is a label too: the model has to learn where to end.
    ids = [*beginning, *written.tokens, *([] if written.end is None else [written.end])]
    return replace(document, ids=ids, first_label=len(beginning), prompt=len(beginning), written=True)


ON_POLICY = Objective(
    config=OnPolicyConfig,
    check=check,
    taught=True,
    facts=facts,
    sentences=sentences,
    build=build,
    rewrites=rewrites,
)

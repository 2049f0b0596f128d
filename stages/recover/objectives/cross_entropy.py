"""Cross-entropy: the labelled tokens themselves are the targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.recover.objectives.objective import Objective
from stages.stage import Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.recover.objectives.objective import Summed
    from stages.rows.packing import Batch


def build(
    model: PreTrainedModel, options: None, teacher: Path | PreTrainedModel | None, dtype: str, context: Context
) -> Summed:
    """Return the cross-entropy of `model` on a batch's labels."""
    from stages.decoders.logits import Logits
    from stages.recover.loss import summed_cross_entropy

    logits = Logits.of(model)

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        head = model.get_output_embeddings()
        return {"loss": summed_cross_entropy(batch.predicting(hidden_TE), head, batch.labels_N, logits)}

    return summed


CROSS_ENTROPY = Objective(taught=False, build=build)

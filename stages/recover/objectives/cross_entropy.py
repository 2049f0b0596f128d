"""Cross-entropy: the labelled tokens themselves are what the model should have said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.recover.config import RecoverStageConfig
from stages.recover.objectives.objective import Objective, softcap_of
from stages.stage import Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.recover.objectives.objective import Summed
    from stages.rows.packing import Batch


def build(model: PreTrainedModel, config: RecoverStageConfig, teacher: Path | None, context: Context) -> Summed:
    """Return the cross-entropy of `model` on a batch's labels."""
    from stages.recover.loss import summed_cross_entropy

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        head, softcap = model.get_output_embeddings(), softcap_of(model)
        return {"loss": summed_cross_entropy(batch.predicting(hidden_TE), head, batch.labels_N, softcap)}

    return summed


CROSS_ENTROPY = Objective(check=lambda config: None, taught=False, facts=lambda config: {}, build=build)

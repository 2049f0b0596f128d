"""What an objective is to the training loop. No torch here: a plan reads these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.recover.config import RecoverStageConfig
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.rows.packing import Batch

    Summed = Callable[[Tensor, Batch], Mapping[str, Tensor]]
    """(last hidden states of a packed batch [T, E], the batch) to scalars summed over its labelled tokens, in nats.

    "loss" is minimised; whatever else is there is recorded beside it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a recovery minimises.

    Attributes:
        check: raises a `UserError` for an option outside its range.
        taught: whether the recovery has the input "teacher", the artifact of the dense model.
        facts: what recovery.json says of it besides its name.
        build: returns the loss of the model that is trained (its adapter attached), given the teacher where there is
            one: its model directory, or a live model, which is left as it is.
    """

    check: Callable[[RecoverStageConfig], None]
    taught: bool
    facts: Callable[[RecoverStageConfig], JSON]
    build: Callable[[PreTrainedModel, RecoverStageConfig, Path | PreTrainedModel | None, Context], Summed]


def softcap_of(model: PreTrainedModel) -> float | None:
    """Return c where the model caps its logits z to c · tanh(z / c) (gemma2), or None."""
    softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return softcap

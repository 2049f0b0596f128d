"""What an objective is to the training loop. No torch here: a plan reads these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """What a recovery minimises. Its functions take its own options.

    Attributes:
        config: the dataclass of its options, which are the field of its name in `RecoverConfig`; None: it has none, and
            its functions are given None.
        check: raises a `UserError` for an option outside its range.
        taught: whether the recovery has the input "teacher", the artifact of the dense model.
        facts: what recovery.json says of it besides its name.
        sentences: what a model's card and the report say of it, given what the teacher is called (empty without one).
        build: returns the loss of the model that is trained (its adapter attached), given the options, the teacher
            where there is one (its model directory, or a live model, which is left as it is), and the computation's
            precision.
    """

    config: type[Any] | None = None
    check: Callable[[Any], None] = lambda options: None
    taught: bool
    facts: Callable[[Any], JSON] = lambda options: {}
    sentences: Callable[[Any, str], Sequence[str]] = lambda options, teacher: ()
    build: Callable[[PreTrainedModel, Any, Path | PreTrainedModel | None, str, Context], Summed]

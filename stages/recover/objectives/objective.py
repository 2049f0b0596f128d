"""The record of an objective, as the training loop uses it. No torch here: a plan reads these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.rows.packing import Batch, Document

    Summed = Callable[[Tensor, Batch], Mapping[str, Tensor]]
    """Returns scalars for (last hidden states of a packed batch [T, E], the batch), summed over its labels, in nats.

    "loss" is minimised; the other entries are recorded beside it.
    """
    Rewrite = Callable[[list[Document], int], list[Document]]
    """Maps (the documents drawn for a step, the number of steps taken before it) to the documents to train on.

    The answer follows from these, the model's parameters and the seed alone, so that a resumed run trains on the same.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss that a recovery minimises. The functions take the objective's own options.

    Attributes:
        config: the dataclass of its options, which are the field of its name in `RecoverConfig`. None where it has no
            options; its functions are then given None.
        check: raises a `UserError` for an option outside its range.
        taught: whether the recovery has the input "teacher", the artifact of the dense model.
        facts: returns the entries of recovery.json besides its name.
        sentences: returns the sentences for a model's card and the report, given the teacher's name (empty without a
            teacher).
        build: returns the loss of the trained model, whose adapter is attached, given the options, the teacher and the
            computation's precision. The teacher is a model directory, a live model, which is left as it is, or None.
        rewrites: returns what gives a step other documents than its rows, from the trained model, its tokenizer, the
            options, the computation's precision and the seed. None where every step is trained on its rows.
    """

    config: type[Any] | None = None
    check: Callable[[Any], None] = lambda options: None
    taught: bool
    facts: Callable[[Any], JSON] = lambda options: {}
    sentences: Callable[[Any, str], Sequence[str]] = lambda options, teacher: ()
    build: Callable[[PreTrainedModel, Any, Path | PreTrainedModel | None, str, Context], Summed]
    rewrites: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Any, str, int], Rewrite] | None = None

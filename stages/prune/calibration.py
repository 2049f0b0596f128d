"""The calibration tokens of data-driven criteria: given ids, or ids tokenised from rows of the recovery data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.decoders.checkpoint import load_tokenizer
from stages.errors import UserError
from stages.prune.memory.estimate import check_memory, work_of
from stages.rows.calibration import Asked, sequences_in

if TYPE_CHECKING:
    from stages.decoders.shapes import DecoderShape
    from stages.prune.config import PruneConfig

Read = Callable[[], Tensor]
"""Gives the calibration tokens [sequences, tokens]."""


def calibration_ids(config: PruneConfig, *, model: Path, data: Path | None, vocabulary: int) -> Tensor:
    """Return token ids [sequences, tokens]: `config.calibration_ids`, or rows of `data`/train.jsonl.

    Raises:
        UserError: the given ids are no rectangle of ids below `vocabulary`, or there is too little text.
    """
    if config.calibration_ids is not None:
        return given_ids(config.calibration_ids, vocabulary)
    if data is None:
        raise UserError(
            f"prune={config.method} looks at calibration text and has none. Give data, or "
            "prune.calibration_ids=FILE.json."
        )
    return sequences_in(data / "train.jsonl", load_tokenizer(model), asked_of(config))


def reading(config: PruneConfig, inputs: Mapping[str, Path], vocabulary: int) -> Read:
    """Return what reads the calibration tokens of a stage with these `inputs`, once it is called."""
    model, data = inputs["model"] / "model", inputs.get("data")
    return partial(calibration_ids, config, model=model, data=data, vocabulary=vocabulary)


def calibration_text(
    read: Read,
    config: PruneConfig,
    shape: DecoderShape,
    *,
    stored: str,
    device: str,
    reads: bool,
    scores: bool,
    cuts: bool,
) -> Tensor | None:
    """Return the calibration tokens that `read` gives, on `device`; None unless `reads` says that something reads text.

    `scores` and `cuts` say what is done with the model: groups are scored, and the model is cut.

    Raises:
        UserError: there is too little text, or too little memory for the model and the text.
    """
    ids_BT = read().to(device) if reads else None
    size = None if ids_BT is None else (ids_BT.shape[0], ids_BT.shape[1])
    work = work_of(shape, config, stored=stored, calibration=size, device=device, scores=scores, cuts=cuts)
    check_memory(work, config.method)
    return ids_BT


def given_ids(rows: Any, vocabulary: int) -> Tensor:
    """Return the given ids, one list a sequence, as a tensor.

    Raises:
        UserError: they are no rectangle of ids below `vocabulary`.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or min(lengths) < 2:
        raise UserError(
            f"prune.calibration_ids: sequences have {min(lengths, default=0)} to {max(lengths, default=0)} tokens. "
            "They must be equally long, with at least 2 tokens."
        )
    ids = torch.tensor([list(row) for row in rows])
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"prune.calibration_ids: token id {low if low < 0 else high} is outside the vocabulary of {vocabulary}."
        )
    return ids


def asked_of(config: PruneConfig) -> Asked:
    """Return the text that the options ask for."""
    calibration = config.calibration
    return Asked(
        sequences=calibration.sequences, length=calibration.length, seed=config.seed, options="prune.calibration"
    )

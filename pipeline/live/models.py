"""Checks that a live model can be worked on, with one error for each fault, and what is known of the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from stages.decoders.architecture import DTYPES
from stages.errors import UserError
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_model(model: Any, name: str = "model") -> None:
    """Raise a `UserError` unless `model` is a causal language model of transformers with its weights in memory."""
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{name} is a {type(model).__name__} and must be a model of transformers, as AutoModelForCausalLM loads it."
            " Where PEFT has wrapped one: model.merge_and_unload()."
        )
    if model.get_output_embeddings() is None:
        raise UserError(f"{name} is a {type(model).__name__}, which predicts no tokens. Load AutoModelForCausalLM.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            f"{name} has weights on the meta device: they are not in memory. Load it whole, without device_map, or "
            "prune it from disk: python -m pipeline model=local model.path=DIR prune.offload=layer."
        )
    precision_of(model, name)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, otherwise: str = "") -> PreTrainedTokenizerBase:
    """Return `tokenizer`. `otherwise` says what a caller can give instead.

    Raises:
        UserError: `tokenizer` is None.
    """
    if tokenizer is None:
        raise UserError(f"text is read, and there is no tokenizer. Give the model's{otherwise}.")
    return tokenizer


def precision_of(model: PreTrainedModel, name: str = "model") -> str:
    """Return the precision that most of the model's weights have.

    Raises:
        UserError: the precision is none of those the project works in.
    """
    counts = Counter[str]()
    for parameter in model.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    precision = counts.most_common(1)[0][0]
    if precision not in DTYPES:
        raise UserError(f"{name} has {precision} weights; it can be worked on in {', '.join(DTYPES)}.")
    return precision


def record_of(model: PreTrainedModel) -> JSON:
    """Return the model's record of how it was pruned. The record of a model that was not pruned is empty."""
    return dict(getattr(model, "pruning", None) or {})


def base_of(model: PreTrainedModel) -> JSON:
    """Return what is known of the dense model: what the record says of it, else the name in the model's config."""
    known: JSON = record_of(model).get("base") or {}
    name = Path(str(model.config.name_or_path or "")).name
    return known or ({"name": name} if name else {})

"""SparseGPT and Wanda through llm-compressor's one-shot run, on a model and calibration ids that are in memory.

The library gets full names of modules, so its own matching decides nothing. (That matching forgets `ignore` for a
target named by its class, and so reaches a tied output head.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stages.decoders.one_shot import one_shot
from stages.errors import UserError
from stages.prune.sparse.recipe import Masking
from stages.prune.statistics.layerwise import BATCH_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEP = "Sparsifying"
"""The beginning of the library's log line about each module that it masks."""


def compress(model: PreTrainedModel, ids_BT: Tensor, work: Sequence[tuple[Masking, Sequence[str]]]) -> None:
    """Mask the named modules of `model` in place, layer after layer, each on the outputs of the masked ones before it.

    Raises:
        UserError: a Hessian can't be inverted.
    """
    bar = ("mask", sum(len(names) for _, names in work))

    def modifiers() -> list[Any]:
        return [_modifier(masking, names) for masking, names in work]

    with one_shot(model, modifiers, ids_BT, batch_tokens=BATCH_TOKENS, bar=bar, done=_done) as warnings:
        singular = [text for text in warnings if "invert hessian" in text]
    if singular:
        raise UserError(
            f"prune=sparseml: SparseGPT could not invert the Hessian of {len(singular)} layers. Give more text with "
            "prune.calibration.sequences=, or raise prune.dampening (dampening_frac in a recipe)."
        )


def _done(text: str) -> int:
    return int(text.startswith(STEP))


def _modifier(masking: Masking, names: Sequence[str]) -> Any:
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    common = {"sparsity": masking.sparsity, "mask_structure": masking.structure, "targets": list(names)}
    if masking.algorithm == "wanda":
        return WandaPruningModifier(**common)
    return SparseGPTModifier(**common, block_size=masking.block_size, dampening_frac=masking.dampening)

"""SparseGPT and Wanda through llm-compressor's one-shot run, on a model and calibration ids that are in memory.

This file owns the contact with the library and nothing else. The library gets full names of modules, so its own
matching decides nothing. (That matching forgets `ignore` for a target named by its class, and so reaches a tied output
head.) The run loads no file, needs no tokenizer, writes nothing, and leaves neither its log nor its environment behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stages.common.progress import barless, hushed, progress
from stages.errors import UserError
from stages.prune.sparse.recipe import Masking
from stages.prune.statistics.layerwise import BATCH_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENVIRONMENT = {"LLM_COMPRESSOR_LOG_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
"""Variables that the library reads when it is imported; it would set the second by itself, and leave it set."""
STEP = "Sparsifying"
"""The beginning of the library's log line about each module that it masks."""


def compress(model: PreTrainedModel, ids_BT: Tensor, work: Sequence[tuple[Masking, Sequence[str]]]) -> None:
    """Mask the named modules of `model` in place, layer after layer, each on the outputs of the masked ones before it.

    Raises:
        UserError: a Hessian can't be inverted.
    """
    with _environment(ENVIRONMENT):
        from llmcompressor.core import reset_session
        from llmcompressor.entrypoints.oneshot import Oneshot

        class InMemory(Oneshot):  # type: ignore[misc]
            """A run on a model in memory, without a checkpoint that could be searched for quantised weights."""

            def validate_model(self, model: PreTrainedModel) -> None:
                pass

        try:
            modules = sum(len(names) for _, names in work)
            with _told(modules) as warnings, _quiet(), _same_vectors(model):
                InMemory(
                    model=model,
                    processor=object(),  # the library wants one for text, and gets token ids
                    recipe=[_modifier(masking, names) for masking, names in work],
                    dataset=_batches(ids_BT),
                    pipeline="sequential",
                )()
        finally:
            reset_session()
            # The library has put its own on the model, which compresses the weights that it saves.
            vars(model).pop("save_pretrained", None)
    singular = [text for text in warnings if "invert hessian" in text]
    if singular:
        raise UserError(
            f"prune=sparseml: SparseGPT could not invert the Hessian of {len(singular)} layers. Give more text with "
            "prune.calibration.sequences=, or raise prune.dampening (dampening_frac in a recipe)."
        )


def _modifier(masking: Masking, names: Sequence[str]) -> Any:
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    common = {"sparsity": masking.sparsity, "mask_structure": masking.structure, "targets": list(names)}
    if masking.algorithm == "wanda":
        return WandaPruningModifier(**common)
    return SparseGPTModifier(**common, block_size=masking.block_size, dampening_frac=masking.dampening)


def _batches(ids_BT: Tensor) -> DataLoader[Any]:
    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack(rows)}

    size = max(1, BATCH_TOKENS // ids_BT.shape[1])
    return DataLoader(ids_BT, batch_size=size, collate_fn=collate)  # type: ignore[arg-type]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _told(modules: int) -> Iterator[list[str]]:
    """Yield a list that fills with the library's warnings, and show one bar over the modules that it masks."""
    from loguru import logger

    warnings: list[str] = []
    with progress("mask", total=modules, unit="matrix") as bar:

        def hear(message: Any) -> None:
            level, text = message.record["level"].name, message.record["message"]
            if level == "WARNING":
                warnings.append(text)
            elif text.startswith(STEP):
                bar.update()

        sink = logger.add(hear, level="INFO", format="{message}")
        try:
            yield warnings
        finally:
            logger.remove(sink)


@contextmanager
def _same_vectors(model: PreTrainedModel) -> Iterator[None]:
    """Restore the norms and biases after the block.

    During a run the library adds 1 to the norms of a gemma, which scale by 1 + w. Subtracting the 1 again rounds them.
    """
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.ndim == 1}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's bars, two a layer, and torch's log about every traced model."""
    from llmcompressor.pipelines import cache
    from llmcompressor.pipelines.sequential import pipeline

    with barless(cache, pipeline), hushed("torch.fx._symbolic_trace", logging.ERROR):
        yield

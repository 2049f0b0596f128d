"""llm-compressor's one-shot run on a model and calibration ids that are in memory.

This file owns the contact with the library and nothing else. The run loads no file, needs no tokenizer, writes nothing,
and leaves neither its log nor its environment behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stages.common.progress import barless, hushed, progress
from stages.decoders.compressed import unbarred

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENVIRONMENT = {"LLM_COMPRESSOR_LOG_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
"""Variables that the library reads when it is imported; it would set the second by itself, and leave it set."""


@contextmanager
def one_shot(
    model: PreTrainedModel,
    modifiers: Callable[[], Sequence[Any]],
    ids_BT: Tensor | None,
    *,
    batch_tokens: int,
    bar: tuple[str, int],
    done: Callable[[str], int],
) -> Iterator[list[str]]:
    """Change `model` in place by the library's modifiers, and yield the library's warnings.

    In the block, `model.save_pretrained` is the library's own. Afterwards it is the model's again.

    Args:
        model: the model.
        modifiers: makes the modifiers. It may import the library, whose environment is set then.
        ids_BT: the calibration tokens, which run through layer after layer; None where the modifiers read none.
        batch_tokens: tokens that run through a layer together.
        bar: the name of the progress bar, and the number of matrices.
        done: tells how many matrices a line of the library's log says are done.
    """
    with _environment(ENVIRONMENT):
        from llmcompressor.core import reset_session
        from llmcompressor.entrypoints.oneshot import Oneshot

        class InMemory(Oneshot):  # type: ignore[misc]
            """A run on a model in memory, without a checkpoint that could be searched for quantised weights."""

            def validate_model(self, model: PreTrainedModel) -> None:
                pass

        try:
            with _quiet():
                with _told(*bar, done) as warnings, _same_vectors(model):
                    InMemory(
                        model=model,
                        processor=object(),  # the library wants one for text, and gets token ids
                        recipe=list(modifiers()),
                        dataset=None if ids_BT is None else _batches(ids_BT, batch_tokens),
                        pipeline="datafree" if ids_BT is None else "sequential",
                    )()
                yield warnings
        finally:
            reset_session()
            # The library has put its own on the model, which compresses the weights that it saves.
            vars(model).pop("save_pretrained", None)


def _batches(ids_BT: Tensor, batch_tokens: int) -> DataLoader[Any]:
    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack(rows)}

    size = max(1, batch_tokens // ids_BT.shape[1])
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
def _told(name: str, modules: int, done: Callable[[str], int]) -> Iterator[list[str]]:
    """Yield a list that fills with the library's warnings, and show one bar over the matrices that it changes."""
    from loguru import logger

    warnings: list[str] = []
    with progress(name, total=modules, unit="matrix") as bar:

        def hear(message: Any) -> None:
            level, text = message.record["level"].name, message.record["message"]
            if level == "WARNING":
                warnings.append(text)
            else:
                bar.update(done(text))

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
    """Silence the library's bars, several a layer, and torch's log about every traced model."""
    from llmcompressor.pipelines import cache
    from llmcompressor.pipelines.sequential import pipeline

    with unbarred(), barless(cache, pipeline), hushed("torch.fx._symbolic_trace", logging.ERROR):
        yield

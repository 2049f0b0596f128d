"""`prune_model`: a live model pruned by the prune stage's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline.live.models import base_of, check_model, check_tokenizer, precision_of, record_of
from pipeline.live.options import configured
from pipeline.live.rows import as_rows
from pipeline.planning.settled import pruning_of
from stages.decoders.checkpoint import count_parameters
from stages.decoders.copies import copy_of, cut_copy
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.calibration import asked_of, given_ids
from stages.prune.config import PruneConfig
from stages.prune.memory.weights import Weights
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.stage import masked_model
from stages.prune.stage import cut_model
from stages.rows.calibration import sequences_of
from stages.rows.stream import Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prune_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    method: str = "best",
    ratio: float = 0.2,
    text: Any = None,
    **options: Any,
) -> PreTrainedModel:
    """Return a smaller model, pruned as `prune=METHOD` of the command line prunes. The given model is left as it is.

    The new model has the given model's precision and device. Its class is the stock architecture where one takes its
    shape, else a class of `stages.decoders.modeling_pruned`. `save_pretrained` writes a directory that loads again.
    The attribute `pruning` holds what `pruning.json` holds: the kept indices, sizes and losses. `save_pretrained` does
    not write it. While pruning runs, one copy of the given model is in memory beside it.

    Args:
        model: a causal language model of a known family.
        tokenizer: the model's tokenizer; needed where text is read.
        method: a name of conf/prune: best, llmpruner, wanda, magnitude, …
        ratio: share of all parameters to remove, in [0, 1).
        text: calibration text of methods that look at any: strings, rows with prompt and response, or sequences of
            token ids that are equally long. `calibration` says how much of the text is taken.
        options: options of the command line by their names without "prune.", such as
            calibration={"sequences": 16, "length": 64} or granularity=["channels"].

    Raises:
        UserError: the family or an option is unknown, the ratio can't be reached, or text or memory is too small.
    """
    check_model(model)
    config = _config(method, ratio, options, model.device.type)
    shape, stored = _shape(model), precision_of(model)
    if record_of(model) and not config.again:
        raise UserError("this model has been pruned (its attribute pruning says how). To cut it further: again=True.")
    read = partial(_ids, text, tokenizer, config, shape.vocabulary)
    if isinstance(config, SparseMLConfig):
        masked, record = masked_model(partial(copy_of, model), read, config, shape, stored=stored)
        return cut_copy(masked, shape, dtype=stored, record=record, base=base_of(model))
    with cut_model(partial(_copied, model), read, config, shape, stored=stored, device=str(model.device)) as made:
        return cut_copy(made.held.model, made.plan.pruned, dtype=stored, record=made.record, base=base_of(model))


def _config(method: str, ratio: float, options: dict[str, Any], device: str) -> PruneConfig:
    """Return the options as the prune stage takes them."""
    config = configured(f"prune={method}", prune=options | {"ratio": ratio})
    config.prune.calibration.data = None  # it names where the command line has its text from
    if config.prune.like is not None:
        raise UserError(
            "like= is an option of the command line (prune.like=KEY), which cuts a checkpoint, not a model."
        )
    pruning = pruning_of(config, device)
    if pruning is None:
        raise UserError(f"method={method!r} prunes nothing.")
    return pruning.config


def _shape(model: PreTrainedModel) -> DecoderShape:
    """Return the shape that the model's config describes.

    Raises:
        UserError: the model has another number of parameters than that shape.
    """
    shape = DecoderShape.from_config(model.config.to_dict())
    found = count_parameters(model)
    if found != shape.parameters():
        raise UserError(
            f"the model has {found:,} parameters, its config describes {shape.parameters():,}. Where adapters are "
            "attached to it, merge them first (PEFT: model.merge_and_unload())."
        )
    return shape


@contextmanager
def _copied(model: PreTrainedModel, dtype: str) -> Iterator[Weights]:
    yield Weights(copy_of(model, dtype=dtype))


def _ids(text: Any, tokenizer: PreTrainedTokenizerBase | None, config: PruneConfig, vocabulary: int) -> Tensor:
    """Return the calibration tokens [sequences, tokens] of `text`, or of the option calibration_ids."""
    ids = config.calibration_ids if text is None else text
    if ids is None:
        raise UserError(
            f"prune={config.method} looks at calibration text and has none. Give text=: strings, rows with prompt and "
            "response, or token ids."
        )
    if isinstance(ids, Tensor):
        ids = ids.tolist()
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        return given_ids(ids, vocabulary)
    rows = as_rows(ids, "text")
    parts = [Part("", 1.0, 0, len(rows))]
    reader = check_tokenizer(tokenizer, ", or token ids: text=[[1, 2, …], …]")
    return sequences_of(rows.__getitem__, parts, reader, asked_of(config), where="text")

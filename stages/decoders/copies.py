"""Models built from weights in memory: copies of live models, and a cut model as the architecture that takes its shape.

Each is what saving and loading would give (`.checkpoint`), without a directory in between.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from stages.common.progress import others_quiet
from stages.decoders.architecture import DTYPES, PRUNED_MODELS, cut_to
from stages.decoders.checkpoint import incomplete
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def model_of(
    weights: Mapping[str, torch.Tensor], config: PreTrainedConfig, *, dtype: str, device: str = "cpu"
) -> PreTrainedModel:
    """Return the causal language model of `config` with `weights`, as `load_model` would load it from a directory.

    Weights that already have the precision `dtype` and are on `device` are shared with the model, not copied.

    Raises:
        UserError: transformers has no causal language model of such a config, or weights are missing or of another
            shape.
    """
    kind = PRUNED_MODELS.get(config.model_type) or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(f"transformers has no causal language model of model_type '{config.model_type}'.")
    with others_quiet():
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(weights),
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # transformers then reports them, and `incomplete` refuses them
        )
    if problem := incomplete(report):
        raise UserError(
            f"the model's weights are not those of a plain {kind.__name__}: {problem}. Where adapters are attached to "
            "it, merge them first (PEFT: model.merge_and_unload())."
        )
    return model.to(device).eval()  # type: ignore[no-any-return]


def copy_of(
    model: PreTrainedModel, *, dtype: str, config: PreTrainedConfig | None = None, shared: bool = False
) -> PreTrainedModel:
    """Return a copy of a live model on its device in evaluation mode, as saving and loading would give it.

    The copy has no hooks, no gradients and nothing compiled.

    Args:
        model: the model to copy. It is left as it is.
        dtype: precision of the copy's weights.
        config: takes the place of the model's config.
        shared: whether weights that are in `dtype` already are shared instead of copied. Only for a model whose
            weights nobody changes afterwards.

    Raises:
        UserError: as `model_of`.
    """
    config = model.config if config is None else config
    # transformers ties them again, so a tied weight is passed on once.
    tied = model.all_tied_weights_keys if config.tie_word_embeddings else {}
    weights = {
        name: tensor.detach().to(DTYPES[dtype], copy=not shared)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    made = model_of(weights, config, dtype=dtype, device=str(model.device))
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def cut_copy(model: PreTrainedModel, shape: DecoderShape, *, dtype: str, record: JSON, base: JSON) -> PreTrainedModel:
    """Return `model`, whose projections have been cut in place to `shape`, as the architecture that takes this shape.

    The result shares the weights of `model`. It equals what `load_model` returns after `save_cut_model`. Its attribute
    `pruning` holds what pruning.json would hold.
    """
    config, architecture = cut_to(model, shape, dtype)
    made = copy_of(model, dtype=dtype, config=config, shared=True)
    made.pruning = record | {"architecture": architecture, "base": base}
    return made

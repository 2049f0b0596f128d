"""A masked model to recover, and its zeros."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.decoders import decoder, token_ids
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import data_artifact, model_artifact
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.stage import run as prune
from stages.stage import Context

IDS = token_ids(vocabulary=VOCABULARY)
DEAD = "model.layers.1.mlp.gate_proj"


def masked_base(root: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Build the inputs of `recovered` under `root`, the model with half of its projections masked; returns it.

    A row that is all zero is among what was masked: it has no norm to divide by.
    """
    model = decoder(vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=True)
    with torch.no_grad():
        model.get_submodule(DEAD).weight[3] = 0.0
    model_artifact(root / "dense", model.to(dtype))
    data_artifact(root / "data")
    fields = {"algorithm": "magnitude", "mask_structure": "2:4", "ratio": 0.5} | options
    masking = SparseMLConfig(calibration_ids=IDS.tolist(), **fields)
    (root / "base").mkdir()
    prune(masking, {"model": root / "dense"}, Context(output=root / "base"))
    return root / "base" / "model"


def weights(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of the model in `directory`."""
    return load_file(directory / "model.safetensors")


def same_zeros(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether both models have the same tensors, with zeros in the same places."""
    return before.keys() == after.keys() and all(torch.equal(before[n] == 0, after[n] == 0) for n in before)

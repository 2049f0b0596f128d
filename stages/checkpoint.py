"""The one format models cross stages in: a Hugging Face directory with safetensors, config and tokenizer.

Owns loading and saving such directories. Does not own what is in them: shapes are `stages.shapes`, pruning is `stages.prune`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "pruning.json",
)
"""Files that travel with the weights unchanged."""


def load_model(
    directory: Path, *, dtype: str, device: str = "cpu", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the causal language model in `directory`, in evaluation mode, with weights cast to `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, local_files_only=True
    )
    return model.to(device).eval()  # type: ignore[no-any-return]


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `directory`.

    Raises:
        UserError: there is none.
    """
    if not any((directory / name).is_file() for name in COMPANIONS[:2]):
        raise UserError(
            f"{directory} has no tokenizer, and this stage reads text. Put the tokenizer's files beside the weights, "
            "or run without text: prune.calibration_ids=FILE.json adapter=none evaluate=none."
        )
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def save_model(model: PreTrainedModel, directory: Path, *, like: Path) -> None:
    """Write `model` to `directory`, with the tokenizer and companion files of the model directory `like`."""
    directory.mkdir(parents=True, exist_ok=True)
    copy_companions(like, directory)
    model.save_pretrained(directory)


def copy_companions(source: Path, target: Path) -> None:
    """Copy the tokenizer and the other small files that belong to the weights."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())

"""The `gguf` stage: a model directory becomes one file that llama.cpp opens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import UserError
from stages.export.architectures import target
from stages.export.config import GgufConfig
from stages.export.gguf_file import write_gguf
from stages.export.hyperparameters import hyperparameters, remarks, rope_factors
from stages.export.tensors import TYPES, entries
from stages.export.tokenizer import tokenizer_fields
from stages.files import read_json, write_json
from stages.shapes import DecoderShape
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FILE = "model.gguf"
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's numbers for what most matrices are stored as."""


def run(config: GgufConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write model.gguf and conversion.json of `inputs["model"]`; returns its architecture, size and precision.

    Raises:
        UserError: llama.cpp has no architecture for the model or no splitting for its tokenizer, or a value is not
            finite in the precision asked for.
    """
    summary = convert(inputs["model"] / "model", context.output / FILE, dtype=config.dtype)
    write_json(context.output / "conversion.json", summary)
    return summary


def convert(directory: Path, path: Path, *, dtype: str = "auto", name: str | None = None) -> JSON:
    """Write the model in the Hugging Face directory `directory` to the GGUF file `path`; returns a summary.

    Raises:
        UserError: see `run`.
    """
    from stages.checkpoint import load_tokenizer

    fields = read_json(directory / "config.json")
    shape = DecoderShape.from_config(fields)
    goal = target(shape)
    config = _config(fields)
    numbers = hyperparameters(config, shape, goal)
    tensors = entries(directory, shape, goal, dtype=dtype, factors=rope_factors(config))
    kinds = Counter(dict.fromkeys(TYPES, 0))
    for entry in tensors:
        if len(entry.weight.shape) > 1:
            kinds[entry.type.name.lower()] += entry.nbytes
    most = kinds.most_common(1)[0][0]
    header: dict[str, Any] = {"general.type": "model", "general.name": name or fields.get("_name_or_path") or "model"}
    header |= {"general.file_type": FILE_TYPES[most]} | ({"general.quantization_version": 2} if kinds["q8_0"] else {})
    header |= {f"{goal.architecture}.{key}": value for key, value in numbers.items()}
    header |= tokenizer_fields(load_tokenizer(directory), shape.vocabulary)
    size = write_gguf(path, goal.architecture, header, tensors)
    return {
        "architecture": goal.architecture,
        "bytes": size,
        "dtype": most,
        "tensors": len(tensors),
        "tokenizer": header.get("tokenizer.ggml.pre"),
        "remarks": remarks(config, goal),
    }


def _config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration with the defaults that its file leaves out, in today's spelling."""
    from stages.checkpoint import config_class

    model_type = str(fields["model_type"])
    try:
        return config_class(model_type).from_dict(dict(fields))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json can't be read as that of a {model_type}: {error}.") from error

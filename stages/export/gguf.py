"""The `gguf` stage: a model directory written as one file that llama.cpp opens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json, write_json
from stages.decoders.architecture import config_class
from stages.decoders.checkpoint import load_tokenizer
from stages.decoders.lineage import lineage, title
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.architectures import target
from stages.export.config import GgufConfig
from stages.export.gguf_file import write_gguf
from stages.export.hyperparameters import hyperparameters, remarks, rope_factors
from stages.export.tensors import Entry, entries
from stages.export.tokenizer import tokenizer_fields, tokenizer_remarks
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FILE = "model.gguf"
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
"""llama.cpp's numbers for the precision of most matrices."""
QUANTIZATION_VERSION = 2
"""The version of the formats of blocks."""


def run(config: GgufConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write model.gguf and conversion.json of `inputs["model"]`, and return architecture, size and precision.

    Raises:
        UserError: llama.cpp has no architecture for the model or no splitting for its tokenizer, or a value is not
            finite in the precision asked for.
    """
    summary = convert(inputs["model"] / "model", context.output / FILE, dtype=config.dtype)
    write_json(context.output / "conversion.json", summary)
    return summary


def convert(directory: Path, path: Path, *, dtype: str = "auto") -> JSON:
    """Write the model in the Hugging Face directory `directory` to the GGUF file `path`, and return a summary.

    Raises:
        UserError: see `run`.
    """
    fields = read_json(directory / "config.json")
    config, shape = _config(fields), DecoderShape.from_config(fields)
    goal = target(shape)
    numbers = hyperparameters(config, shape, goal)
    tokenizer = load_tokenizer(directory)
    tokens = tokenizer_fields(tokenizer, shape.vocabulary)
    tensors = entries(directory, shape, goal, dtype=dtype, factors=rope_factors(config))
    most = _precision(tensors)
    header = _general(directory, most, blocks=any(entry.quantised for entry in tensors))
    header |= {f"{goal.architecture}.{key}": value for key, value in numbers.items()}
    return {
        "architecture": goal.architecture,
        "bytes": write_gguf(path, goal.architecture, header | tokens, tensors),
        "dtype": most,
        "tensors": len(tensors),
        "tokenizer": tokens["tokenizer.ggml.pre"],
        "remarks": remarks(config, goal) + tokenizer_remarks(tokenizer),
    }


def _general(directory: Path, precision: str, *, blocks: bool) -> JSON:
    """Return the header's fields on the model as a whole."""
    known = lineage(directory)
    fields: JSON = {"general.type": "model", "general.name": title(known)}
    if known.base.get("license"):
        fields["general.license"] = known.base["license"]
    fields["general.file_type"] = FILE_TYPES[precision]
    return fields | ({"general.quantization_version": QUANTIZATION_VERSION} if blocks else {})


def _precision(tensors: Sequence[Entry]) -> str:
    """Return the precision that most values of the layers are in. The output projection has a rule of its own."""
    sizes: Counter[str] = Counter()
    for entry in tensors:
        if entry.name.startswith("blk."):
            sizes[entry.type.name.lower()] += prod(entry.weight.shape)
    return sizes.most_common(1)[0][0]


def _config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration in today's spelling, with the defaults that its file leaves out."""
    model_type = str(fields["model_type"])
    try:
        return config_class(model_type).from_dict(dict(fields))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json can't be read as that of a {model_type}: {error}.") from error

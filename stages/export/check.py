"""What can be exported, checked before anything is built. No torch here: a plan asks."""

from __future__ import annotations

from stages.common.choices import lookup
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.architectures import target
from stages.export.config import DTYPES, FORMATS, ExportConfig


def check_export(config: ExportConfig, shape: DecoderShape | None = None) -> None:
    """Raise unless the options are known, and llama.cpp takes a model of `shape` where that is known and asked for.

    Raises:
        UserError: the format or precision is unknown, or llama.cpp has no architecture for the shape.
    """
    lookup("export.format", config.format, dict.fromkeys(FORMATS))
    lookup("export.dtype", config.dtype, dict.fromkeys(DTYPES))
    if config.format != "gguf" and config.dtype != "auto":
        raise UserError(
            f"export.dtype={config.dtype} is the precision of a GGUF file, and export.format is {config.format}. "
            "Choose export=gguf, or leave the precision out."
        )
    if config.format == "gguf" and shape is not None:
        target(shape)

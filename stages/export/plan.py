"""The plan of the export stages, found before anything runs. No torch here."""

from __future__ import annotations

from dataclasses import replace

from stages.common.checks import require
from stages.common.choices import lookup
from stages.decoders.decilm import SERVERS, unserved
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.architectures import target
from stages.export.config import (
    BLOCKED,
    CALIBRATED,
    DTYPES,
    FORMATS,
    LLAMA_CPP,
    SCHEMES,
    CompressConfig,
    ExportConfig,
    GgufConfig,
    PublishConfig,
)
from stages.export.grouping import remarks


def check_export(config: ExportConfig, shape: DecoderShape | None = None, server: str = "vllm") -> None:
    """Raise unless the options are known and, where a `shape` is known, the format can say it.

    Args:
        config: the export group.
        shape: the shape of the model that will be written; None where it is not known yet.
        server: the server that a DeciLM directory is for.

    Raises:
        UserError: the format or precision is unknown, llama.cpp has no architecture for the shape, or DeciLM can't say
            it.
    """
    lookup("export.format", config.format, dict.fromkeys(FORMATS))
    _check_dtype(config.dtype)
    lookup("prune.serve", server, dict.fromkeys(SERVERS))
    if config.format != "gguf" and config.dtype != "auto":
        raise UserError(
            f"export.dtype={config.dtype} is the precision of a GGUF file, and export.format is {config.format}. "
            "Choose export=gguf, or leave the precision out."
        )
    lookup("export.scheme", config.scheme, dict.fromkeys(SCHEMES))
    require(config.sequences >= 1, "export.sequences", "at least 1", config.sequences)
    require(config.length >= 2, "export.length", "at least 2", config.length)
    if config.format == "gguf" and shape is not None:
        target(shape)
    if config.format == "decilm" and shape is not None and (reason := unserved(shape, server)):
        raise UserError(f"export=decilm: {reason}.")


def _check_dtype(dtype: str) -> None:
    """Raise unless a GGUF file can be written in this precision here."""
    if LLAMA_CPP.fullmatch(dtype):
        raise UserError(
            f"export.dtype={dtype} is written by llama.cpp's own tool alone. Write the file in 16 bits (export=gguf "
            f"export.dtype=f16), then run: llama-quantize model.gguf model-{dtype.lower()}.gguf {dtype.upper()}"
        )
    lookup("export.dtype", dtype, dict.fromkeys(DTYPES))


def check_publishable(options: ExportConfig, adapter: str, *, merge: bool, merged: bool) -> None:
    """Raise unless the recovery ends in one model, because only one model can be published.

    Args:
        options: the export group.
        adapter: name of the adapter.
        merge: whether the adapter was to be merged.
        merged: whether the recovery's artifact is a model, not an adapter beside one.

    Raises:
        UserError: the recovery ends in an adapter beside a model.
    """
    if options.format != "none" and not merged:
        kept = f"adapter={adapter} can't be merged into one" if merge else "recover.merge=false"
        raise UserError(
            f"export={options.format} publishes one model, and {kept}. Choose an adapter that can be merged "
            "(adapter=rora recover.merge=true), or take base and adapter from the store: export=none."
        )


def gguf(options: ExportConfig) -> GgufConfig | None:
    """Return the gguf stage's config, or None where no GGUF file is asked for."""
    return GgufConfig(dtype=options.dtype) if options.format == "gguf" else None


def compressed(options: ExportConfig, seed: int) -> CompressConfig | None:
    """Return the quantise stage's config, or None where no compressed model is asked for."""
    if options.format != "compressed":
        return None
    read = {"sequences": options.sequences, "length": options.length, "seed": seed} if reads_text(options) else {}
    return CompressConfig(scheme=options.scheme, **read)


def rounds(options: ExportConfig) -> bool:
    """Return whether the export has fewer bits than the model, so that it is judged apart."""
    return options.format == "compressed" or (options.format == "gguf" and options.dtype in BLOCKED)


def reads_text(options: ExportConfig) -> bool:
    """Return whether the export is calibrated on text."""
    return options.format == "compressed" and options.scheme in CALIBRATED


def outlook(options: ExportConfig, shape: DecoderShape | None) -> str:
    """Return what is to be said of an export of `shape` before it is made; empty where nothing is."""
    if options.format != "compressed" or shape is None:
        return ""
    return "\n".join(f"export=compressed: {remark}" for remark in remarks(options.scheme, shape))


def published(options: ExportConfig, model: str, server: str) -> PublishConfig:
    """Return the export stage's config. `model` is the name of the dense model; `server` reads a DeciLM directory."""
    found = PublishConfig(format=options.format, model=model)
    return replace(found, serve=server) if options.format == "decilm" else found

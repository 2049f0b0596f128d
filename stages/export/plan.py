"""The plan of the export stages, found before anything runs. No torch here."""

from __future__ import annotations

from dataclasses import replace

from stages.common.choices import lookup
from stages.decoders.decilm import SERVERS, unserved
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.architectures import target
from stages.export.config import DTYPES, FORMATS, ExportConfig, GgufConfig, PublishConfig


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
    lookup("export.dtype", config.dtype, dict.fromkeys(DTYPES))
    lookup("prune.serve", server, dict.fromkeys(SERVERS))
    if config.format != "gguf" and config.dtype != "auto":
        raise UserError(
            f"export.dtype={config.dtype} is the precision of a GGUF file, and export.format is {config.format}. "
            "Choose export=gguf, or leave the precision out."
        )
    if config.format == "gguf" and shape is not None:
        target(shape)
    if config.format == "decilm" and shape is not None and (reason := unserved(shape, server)):
        raise UserError(f"export=decilm: {reason}.")


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


def published(options: ExportConfig, model: str, server: str) -> PublishConfig:
    """Return the export stage's config. `model` is the name of the dense model; `server` reads a DeciLM directory."""
    found = PublishConfig(format=options.format, model=model)
    return replace(found, serve=server) if options.format == "decilm" else found

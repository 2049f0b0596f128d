"""Options that decide an export. No torch here, because a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.common.later import LATER

FORMATS = ("none", "hf", "gguf", "decilm")
DTYPES = ("auto", "f32", "f16", "bf16", "q8_0")


@dataclass(kw_only=True, slots=True)
class GgufConfig:
    """The form of the weights in a GGUF file."""

    dtype: str = "auto"
    """Precision of the matrices: f32, f16, bf16, q8_0 (8-bit blocks of 32), or auto (as they are stored). Norms and
    biases are always float32, because llama.cpp needs them so."""


@dataclass(kw_only=True, slots=True)
class PublishConfig:
    """The contents of a directory to publish."""

    format: str = "hf"
    """hf (the Hugging Face directory), gguf (one file for llama.cpp) or decilm (a directory for servers)."""
    model: str = ""
    """Readable name of the dense model."""
    serve: str = field(default="vllm", metadata=LATER)
    """The server that a DeciLM directory is for."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The export group of the command line."""

    format: str = "none"
    """none, hf (a directory to publish: the model with its card), gguf (a file for llama.cpp with its card) or decilm
    (a directory in which vLLM, SGLang and TensorRT-LLM read layers that differ in shape; `prune.serve` names which)."""
    dtype: str = "auto"
    """Precision of a GGUF file's matrices: f32, f16, bf16, q8_0, or auto (as they are stored)."""

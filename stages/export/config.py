"""Options that decide an export. No torch here, because a plan reads these."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMATS = ("none", "hf", "gguf")
BLOCKED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Precisions whose values share a scale in blocks of 32: those that the gguf package can write."""
DTYPES = ("auto", "f32", "f16", "bf16", *BLOCKED)
LLAMA_CPP = re.compile(r"q[2-6]_k(_s|_m|_l)?|iq[1-4]_\w+", re.IGNORECASE)
"""Precisions that llama.cpp's own tool writes, and nothing else does."""


@dataclass(kw_only=True, slots=True)
class GgufConfig:
    """The form of the weights in a GGUF file."""

    dtype: str = "auto"
    """Precision of the matrices: f32, f16, bf16, blocks of 32 values (q8_0, q5_1, q5_0, q4_1, q4_0), or auto (as they
    are stored). Norms and biases are always float32, because llama.cpp needs them so."""


@dataclass(kw_only=True, slots=True)
class PublishConfig:
    """The contents of a directory to publish."""

    format: str = "hf"
    """hf (the Hugging Face directory) or gguf (one file for llama.cpp)."""
    model: str = ""
    """Readable name of the dense model."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The export group of the command line."""

    format: str = "none"
    """none, hf (a directory to publish: the model with its card) or gguf (a file for llama.cpp with its card)."""
    dtype: str = "auto"
    """Precision of a GGUF file's matrices: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, or auto (as they are
    stored)."""

"""Options that decide an export. No torch here, because a plan reads these."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from stages.common.later import LATER

FORMATS = ("none", "hf", "gguf", "decilm", "compressed")
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


SCHEMES = {"w4a16": "W4A16", "w8a8": "W8A8", "fp8": "FP8_DYNAMIC"}
"""What export.scheme may be, by compressed-tensors' own names."""
CALIBRATED = ("w4a16", "w8a8")
"""Schemes whose weights are rounded by GPTQ, which reads text."""


@dataclass(kw_only=True, slots=True)
class CompressConfig:
    """The bits of a compressed model, and the text that its rounding is calibrated on."""

    scheme: str = "w4a16"
    """w4a16, w8a8 or fp8."""
    sequences: int = 128
    """Number of calibration sequences."""
    length: int = 256
    """Tokens of each."""
    seed: int = 0
    """Decides the order of the rows."""


@dataclass(kw_only=True, slots=True)
class PublishConfig:
    """The contents of a directory to publish."""

    format: str = "hf"
    """hf (the Hugging Face directory), gguf (one file for llama.cpp), decilm (a directory for servers) or compressed
    (a directory in few bits)."""
    model: str = ""
    """Readable name of the dense model."""
    serve: str = field(default="vllm", metadata=LATER)
    """The server that a DeciLM directory is for."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The export group of the command line."""

    format: str = "none"
    """none, hf (a directory to publish: the model with its card), gguf (a file for llama.cpp with its card), decilm
    (a directory in which vLLM, SGLang and TensorRT-LLM read layers that differ in shape; `prune.serve` names which) or
    compressed (a directory in few bits for vLLM, with its card)."""
    dtype: str = "auto"
    """Precision of a GGUF file's matrices: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, or auto (as they are
    stored)."""
    scheme: str = "w4a16"
    """Bits of a compressed model's matrices: w4a16 (4-bit weights), w8a8 (weights and inputs are 8-bit whole numbers)
    or fp8 (weights and inputs are 8-bit floats)."""
    sequences: int = 128
    """Number of sequences of the recovery's text that a compressed model is calibrated on; fp8 reads none."""
    length: int = 256
    """Tokens in each of those sequences."""

"""The code that reads DeciLM directories: the files, at the commits, from which the rules were read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a server at one commit."""

    project: str
    path: str
    commit: str

    def __str__(self) -> str:
        return f"{self.project} {self.path} at {self.commit[:12]}"


_VLLM, _SGLANG, _TENSORRT = "vllm-project/vllm", "sgl-project/sglang", "NVIDIA/TensorRT-LLM"

VLLM = Source(_VLLM, "vllm/model_executor/models/nemotron_nas.py", "00bd1493b3e82d6c13c68ee8a0e1c5a96707e190")
VLLM_LLAMA = Source(_VLLM, "vllm/model_executor/models/llama.py", "e06c9ba2a6ea923a84add30f5dafaea126429b81")
VLLM_CONFIG = Source(
    _VLLM, "vllm/transformers_utils/model_arch_config_convertor.py", "00bb6f59a0c71cac5c759a7b82aeca2fdf40300b"
)
SGLANG = Source(_SGLANG, "python/sglang/srt/models/nemotron_nas.py", "65cf1ed0b8b1cec4c51690b3294f3d2367e09ef8")
SGLANG_LLAMA = Source(_SGLANG, "python/sglang/srt/models/llama.py", "00239548f1cd1a06ca145a5447a86738090a48f1")
SGLANG_CONFIG = Source(_SGLANG, "python/sglang/srt/configs/model_config.py", "001adf564fd332c285397a46a034ee2f93ba7515")
TENSORRT = Source(
    _TENSORRT, "tensorrt_llm/_torch/models/modeling_nemotron_nas.py", "4d36536824297d167f4f5cfbd0217eb723014b81"
)
TENSORRT_CONFIG = Source(_TENSORRT, "tensorrt_llm/_torch/model_config.py", "1a0dc5f70054f66d892df6a964996fc5ead6f81e")

"""The machine: card, driver, versions, and what of the GPU libraries is there."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.device import GIB
from stages.common.machine import hardware
from stages.stage import JSON

OPTIONAL = ("triton", "flash_attn", "liger_kernel", "bitsandbytes", "torchao")


def machine(setting: Setting, found: Found) -> Part:
    """Tell what the checks run on."""
    numbers: JSON = {"hardware": hardware(), "torch": torch.__version__, "device": setting.device}
    numbers["optional"] = {name: find_spec(name) is not None for name in OPTIONAL}
    lines = [Row("processor", f"{numbers['hardware']['processor']}, {numbers['hardware']['cores']} cores")]
    lines.append(Row("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"))
    if setting.device == "cuda":
        numbers["card"] = _card()
        card = numbers["card"]
        lines.insert(
            0, Row("card", f"{card['name']}, {card['memory_bytes'] / GIB:.0f} GiB, compute {card['capability']}")
        )
    have = [name for name, there in numbers["optional"].items() if there]
    lines.append(Row("GPU libraries", ", ".join(have) or "none"))
    return Part(numbers, lines)


def _card() -> JSON:
    card = torch.cuda.get_device_properties(0)
    return {
        "name": card.name,
        "memory_bytes": card.total_memory,
        "free_bytes": torch.cuda.mem_get_info()[0],
        "capability": f"{card.major}.{card.minor}",
        "processors": card.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "cards": torch.cuda.device_count(),
    }


def absent(device: str) -> str | None:
    """Return why there is no such device; None where there is one."""
    if device == "cpu":
        return None
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:  # an assertion where torch's build has no CUDA
        return f"torch {torch.__version__} can't use a GPU ({error}). On a processor, at toy size: --device cpu"
    return None

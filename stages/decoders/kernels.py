"""Fused kernels for what a llama-like decoder does between its products, on a GPU.

RMSNorm is torch's own kernel. Rotary positions and SwiGLU are liger-kernel's (BSD, arXiv 2410.10989), an optional
package. Op by op these are 26 launches a layer forward, and more backward; fused they are 4. On a processor nothing
changes.

No family is named here. A module's own code is compared with the formula that a kernel computes, and keeps its code
where the two differ (gemma's norms multiply by 1 + w).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from copy import copy
from functools import cache, partial, wraps
from importlib.util import find_spec
from types import MethodType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

ROTARY = "apply_rotary_pos_emb"
"""The name of the function that turns queries and keys, in transformers' modelling files."""


def use_fused_kernels(model: nn.Module) -> None:
    """Let `model` run in fused kernels wherever its tensors are on a GPU, and say so once."""
    norms = fuse_norms(model, normed)
    if not liger_is_there():
        _say(f"{norms} norms run in torch's fused kernel. Rotary positions and SwiGLU run op by op: {REMEDY}")
        return
    from liger_kernel.transformers.rope import liger_rotary_pos_emb
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    mlps = fuse_mlps(model, LigerSwiGLUMLP.forward)
    files = fuse_rotary(model, liger_rotary_pos_emb)
    _say(f"{norms} norms run in torch's fused kernel, {mlps} MLPs and the positions of {files} file in liger-kernel's.")


REMEDY = "pip install 'prune-recover[gpu]' brings liger-kernel, which fuses them; recover.compile=true fuses them too."


@cache
def _say(what: str) -> None:
    log.info("%s", what)


def liger_is_there() -> bool:
    """Return whether liger-kernel is installed."""
    return find_spec("liger_kernel") is not None


def fuse_norms(model: nn.Module, fused: Callable[[Any, Tensor], Tensor], device: str = "cuda") -> int:
    """Let every plain RMSNorm of `model` run as `fused` on devices of this type; returns how many there are."""
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm") and _is_plain(module)]
    for norm in norms:
        _replace_forward(norm, lambda norm, x: x.device.type == device and norm.weight.dtype == x.dtype, fused)
    return len(norms)


def normed(norm: Any, x: Tensor) -> Tensor:
    """Return x / rms(x) ⊙ w in the precision of x, computed in float32."""
    # autocast would make it float32 for all that follows.
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, norm.weight.shape, norm.weight, _epsilon(norm))


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


@torch.no_grad()
def _is_plain(norm: Any) -> bool:
    x = _numbers(2, 8)
    twin = _twin(norm, weight=_numbers(8))
    return torch.allclose(type(norm).forward(twin, x), normed(twin, x), atol=1e-5)


def fuse_mlps(model: nn.Module, fused: Callable[[Any, Tensor], Tensor], device: str = "cuda") -> int:
    """Let every MLP that is down(silu(gate(x)) ⊙ up(x)) run as `fused`; returns how many there are."""
    mlps = [module for module in model.modules() if hasattr(module, "down_proj") and _is_swiglu(module)]
    for mlp in mlps:
        _replace_forward(mlp, lambda _, x: x.device.type == device, fused)
    return len(mlps)


@torch.no_grad()
def _is_swiglu(mlp: Any) -> bool:
    if not (hasattr(mlp, "gate_proj") and hasattr(mlp, "up_proj")):
        return False
    gate, up, down = (partial(F.linear, weight=weight) for weight in _numbers(3, 6, 6))
    twin, x = _twin(mlp, gate_proj=gate, up_proj=up, down_proj=down), _numbers(2, 6)
    return torch.allclose(type(mlp).forward(twin, x), down(F.silu(gate(x)) * up(x)), atol=1e-5)


def _twin(module: Any, **parts: Any) -> Any:
    """Return a copy of `module` with other parts, so that its code runs whatever its own weights are and wherever."""
    twin = copy(module)
    # What is in the dictionary comes before parameters and modules of the same name.
    twin.__dict__.update(parts)
    return twin


def fuse_rotary(model: nn.Module, fused: Callable[..., tuple[Tensor, Tensor]], device: str = "cuda") -> int:
    """Let the modelling files of `model` turn queries and keys by `fused`, in training; returns how many files do.

    Such a file's function is shared by all models of a family in this process. It is `fused` for tensors that have a
    gradient on a device of this type, and what it was for all others.
    """
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    found = [file for file in files if hasattr(file, ROTARY) and _turns_halves(getattr(file, ROTARY))]
    for file in found:
        _replace_rotary(file, fused, device)
    return len(found)


def _replace_rotary(file: ModuleType, fused: Callable[..., tuple[Tensor, Tensor]], device: str) -> None:
    own = getattr(file, ROTARY)
    if getattr(own, "fused", None) is fused:
        return

    @wraps(own)
    def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **options: Any) -> Any:
        # The kernel writes where queries and keys lie, which nothing else reads in training.
        free = query.requires_grad and key.requires_grad and not (rest or options)
        if free and query.device.type == device and cos.shape[-1] == query.shape[-1]:
            return fused(query, key, cos, sin)
        return own(query, key, cos, sin, *rest, **options)

    rotary.fused = fused  # type: ignore[attr-defined]
    setattr(file, ROTARY, rotary)


@torch.no_grad()
def _turns_halves(rotary: Callable[..., Any]) -> bool:
    """Return whether `rotary` is llama's: the halves of a head are the two coordinates that are turned."""
    query, key = _numbers(1, 2, 3, 8), _numbers(1, 1, 3, 8)
    angles = _numbers(1, 3, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    found = rotary(query, key, cos, sin)
    expected = (each * cos + torch.cat((-each[..., 4:], each[..., :4]), -1) * sin for each in (query, key))
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def _numbers(*shape: int) -> Tensor:
    """Return numbers that look random, without a random state."""
    return torch.arange(1, torch.Size(shape).numel() + 1).mul(1.618).sin().view(shape)


def _replace_forward(module: Any, fits: Callable[[Any, Tensor], bool], fused: Callable[[Any, Tensor], Tensor]) -> None:
    """Let `module` run as `fused` for inputs that fit, and as it was for all others."""
    own = type(module).forward

    def forward(self: Any, x: Tensor) -> Tensor:
        return fused(self, x) if fits(self, x) else own(self, x)

    module.forward = MethodType(forward, module)

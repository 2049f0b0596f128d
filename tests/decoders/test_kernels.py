"""Fused kernels by plain stand-ins: every family computes what it computed, and each kernel is used where it fits."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.decoders import KINDS, decoder, token_ids
from stages.decoders.kernels import ROTARY, fuse_mlps, fuse_norms, fuse_rotary, normed


def gated(mlp: Any, x: Tensor) -> Tensor:
    return mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))  # type: ignore[no-any-return]


def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    half = query.shape[-1] // 2
    swapped = (torch.cat((-each[..., half:], each[..., :half]), -1) for each in (query, key))
    first, second = (
        each * cos[:, None] + other * sin[:, None] for each, other in zip((query, key), swapped, strict=True)
    )
    return first, second


def outcome(model: nn.Module) -> list[Tensor]:
    hidden = model.model(token_ids(2, 9)).last_hidden_state  # type: ignore[operator, union-attr]
    (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return [hidden.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("family", KINDS)
def test_a_model_with_fused_kernels_computes_what_it_computed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(decoder(family))
    model = decoder(family)
    file = sys.modules[type(model).__module__]
    monkeypatch.setattr(file, ROTARY, getattr(file, ROTARY))

    used = fuse_norms(model, normed, "cpu"), fuse_mlps(model, gated, "cpu"), fuse_rotary(model, turned, "cpu")

    torch.testing.assert_close(outcome(model), expected, rtol=1e-4, atol=1e-5)
    # gemma's norms multiply by 1 + w and its MLPs have another gate, and phi3 has gate and up in one matrix.
    plain = not family.startswith("gemma")
    assert (used[0] > 0, used[1] == 3, used[2]) == (plain, plain and family != "phi3", 1)


def test_elsewhere_than_on_a_gpu_a_model_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a kernel was called")

    model = decoder()
    file = sys.modules[type(model).__module__]
    monkeypatch.setattr(file, ROTARY, getattr(file, ROTARY))
    assert [fuse(model, never) for fuse in (fuse_norms, fuse_mlps, fuse_rotary)] == [7, 3, 1]
    torch.testing.assert_close(outcome(model), outcome(decoder()), rtol=0, atol=0)

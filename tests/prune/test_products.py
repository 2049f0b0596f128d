"""Products of bfloat16 weights in float32 blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stages.prune.statistics import products
from stages.prune.statistics.products import FastProducts


@pytest.mark.parametrize("bias", [False, True])
def test_a_fast_product_and_its_gradient_are_the_exact_ones_rounded(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(products, "PRODUCT", 7 * 48)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 48, generator=generator).bfloat16()
    offset = torch.randn(40, generator=generator).bfloat16() if bias else None
    x = torch.randn(2, 5, 48, generator=generator).bfloat16().requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    with FastProducts():
        found = F.linear(x, weight, offset)
    exact = F.linear(exact_x, weight.double(), None if offset is None else offset.double())
    assert "_Linear" in type(found.grad_fn).__name__
    found.float().square().sum().backward()
    exact.square().sum().backward()
    rounding = {"rtol": 2**-8, "atol": 1e-4}
    torch.testing.assert_close(found.double(), exact, **rounding)
    torch.testing.assert_close(x.grad, exact_x.grad.bfloat16(), rtol=2**-6, atol=1.0)

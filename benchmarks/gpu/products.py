"""The rate of matrix products, at the widths of a 7B and at those that pruning leaves."""

from __future__ import annotations

import torch

from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.device import seconds_of
from stages.decoders.architecture import DTYPES

TOKENS, HIDDEN = 8192, 4096
WIDTHS = (11008, 8704, 8640, 8605)
"""MLP channels of a 7B, and what 20 % less leaves: rounded up to 128, to 64, and as it comes."""


def matmul(setting: Setting, found: Found) -> Part:
    """Measure products of tokens with matrices of different widths, in both directions, and of large squares."""
    tokens, hidden, widths = (256, 64, (160, 128, 125)) if setting.toy else (TOKENS, HIDDEN, WIDTHS)
    rates = {f"{hidden} x {width}": _rate(setting, tokens, hidden, width) for width in widths}
    rates |= {f"{width} x {hidden}": _rate(setting, tokens, width, hidden) for width in widths}
    rates["square"] = _rate(setting, tokens, tokens, tokens)
    whole, odd = rates[f"{hidden} x {widths[0]}"], rates[f"{hidden} x {widths[-1]}"]
    lines = [Row(f"matmul, {tokens} x {name}", f"{rate / 1e12:,.3g} TFLOP/s") for name, rate in rates.items()]
    lines[-1] = Row(f"matmul, {tokens} squared", f"{rates['square'] / 1e12:,.3g} TFLOP/s")
    numbers = {"rates": rates, "best": max(rates.values()), "odd_over_whole": odd / whole, "dtype": setting.dtype}
    return Part(numbers, lines)


@torch.no_grad()
def _rate(setting: Setting, rows: int, inner: int, columns: int) -> float:
    """Return the operations a second of a linear layer's product."""
    left = torch.randn(rows, inner, device=setting.device, dtype=DTYPES[setting.dtype])
    weight = torch.randn(columns, inner, device=setting.device, dtype=DTYPES[setting.dtype])
    taken = seconds_of(
        lambda: torch.nn.functional.linear(left, weight), setting.device, least=0.02 if setting.toy else 0.2
    )
    return 2 * rows * inner * columns / taken

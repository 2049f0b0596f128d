"""Packings for the tests of weights held in few bits: a plain one that needs no library, and bitsandbytes'."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from stages.decoders.quantised import Packing, packing

MISSING = "pip install -e '.[quantised]' installs bitsandbytes"
needs_library = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason=MISSING)


def _pack(weight_OI: Tensor) -> tuple[Tensor, tuple[Tensor, torch.dtype]]:
    scale_O1 = weight_OI.float().abs().amax(1, keepdim=True) / 127
    return (weight_OI / scale_O1).round().to(torch.int8), (scale_O1, weight_OI.dtype)


def _whole(codes_OI: Tensor, state: tuple[Tensor, torch.dtype]) -> Tensor:
    scale_O1, dtype = state
    return (codes_OI * scale_O1).to(dtype)


PLAIN = Packing(_pack, _whole)
"""One of 255 multiples of a scale that a row shares."""


def packed_by(name: str) -> Packing:
    """Return the packing of a name in `PACKINGS`."""
    return PLAIN if name == "plain" else packing(name)


PACKINGS = ["plain", pytest.param("nf4", marks=needs_library), pytest.param("8bit", marks=needs_library)]

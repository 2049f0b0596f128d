"""A stand-in for the CUDA kernel of attention over variable lengths: its documented meaning, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stages.decoders.variable_length import KERNELS, Kernel, Window
from stages.rows.bounds import Bounds


@dataclass
class StandIn:
    """The kernel's meaning, with a record of the shapes that it was called with.

    Sequence n has the queries from `queries_N[n]` to `queries_N[n + 1]`, and the keys alike. Its last query stands at
    its last key (bottom right). A query sees `before` keys before its place and `after` behind it; -1 is all of them.
    """

    shapes: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, window: Window, scaling: float) -> Tensor:
        _check(q, k, v, bounds)
        self.shapes.append((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        before, after = window
        outputs = []
        queries, keys = bounds.queries_N.tolist(), bounds.keys_N.tolist()
        for (q0, q1), (k0, k1) in zip(pairwise(queries), pairwise(keys), strict=True):
            times = q.shape[1] // k.shape[1]
            ours, theirs, values = q[q0:q1], *(part[k0:k1].repeat_interleave(times, 1) for part in (k, v))
            weights = torch.einsum("thd,shd->hts", ours, theirs) * scaling
            place = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
            other = torch.arange(k1 - k0)
            seen = (other >= place - before if before >= 0 else True) & (other <= place + after if after >= 0 else True)
            if seen is not True:
                weights = weights.masked_fill(~seen, -torch.inf)
            outputs.append(torch.einsum("hts,shd->thd", weights.softmax(-1).to(v.dtype), values))
        return torch.cat(outputs)


def _check(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> None:
    """Check what the kernel asks for."""
    assert q.dtype == k.dtype == v.dtype
    assert bounds.queries_N.dtype == bounds.keys_N.dtype == torch.int32
    assert q.shape[-1] % 8 == 0
    assert q.shape[1] % k.shape[1] == 0
    assert all(part.stride(-1) == 1 for part in (q, k, v))
    assert bounds.queries_N[0] == bounds.keys_N[0] == 0
    assert bounds.queries_N[-1] == len(q)
    assert bounds.keys_N[-1] == len(k) == len(v)
    assert bounds.queries_N.diff().max() <= bounds.longest_queries
    assert bounds.keys_N.diff().max() <= bounds.longest_keys


def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Register a stand-in as the processor's kernel while a test runs."""
    kernel = StandIn()
    every = frozenset({torch.float64, torch.float32, torch.bfloat16})
    monkeypatch.setitem(KERNELS, "cpu", Kernel(kernel, every))
    return kernel

"""The boundaries of sequences that lie end to end, as a variable-length attention kernel takes them.

This module also owns how host data reaches a device. It knows neither attention nor where the lengths come from.

Shapes: N sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

KEPT = 16
"""Batches whose boundaries are kept. All layers of a batch ask for them, and a few batches may be on their way."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where each sequence's queries and keys begin and end; the last query stands at the last key (bottom right)."""

    queries_N: Tensor
    """Cumulative numbers of queries, from 0: N + 1 numbers in int32."""
    keys_N: Tensor
    """Cumulative numbers of keys, alike."""
    longest_queries: int
    """At least the most queries that a sequence has."""
    longest_keys: int
    """At least the most keys that a sequence has."""


def bounds(queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> Bounds:
    """Return the boundaries of sequences with these numbers of queries and keys; the same object for the same numbers.

    So they are copied to the device once a batch, however many layers ask.
    """
    return _bounds(queries, keys, torch.device(device))


@lru_cache(maxsize=KEPT)
def _bounds(queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> Bounds:
    # An evaluation may ask first, and tensors made in inference mode can't be saved for a backward pass.
    with torch.inference_mode(False):
        queries_N, keys_N = (on_device([0, *accumulate(lengths)], device, torch.int32) for lengths in (queries, keys))
        return Bounds(queries_N, keys_N, max(queries), max(keys))


def on_device(values: Sequence[int] | Sequence[float], device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """Return `values` as a tensor on `device`; see `sent`."""
    return sent(torch.tensor(values, dtype=dtype), device)


def sent(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return a tensor of the host on `device`. On CUDA the host goes on at once, and the copy waits for its turn."""
    # From pageable memory, the host would wait until the device has done all that was asked of it before.
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

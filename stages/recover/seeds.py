"""Random numbers of torch inside a block, from a seed of the block's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(*seed: int | str) -> Iterator[None]:
    """Make torch's random numbers in the block a function of `seed` alone, and leave those outside as they were."""
    # Through a hash of all parts, so that neighbouring steps and micro-batches have unrelated random numbers.
    with torch.random.fork_rng():
        torch.manual_seed(random.Random(" ".join(map(str, seed))).getrandbits(63))
        yield

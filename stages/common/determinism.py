"""Results of a GPU that are equal to the byte from run to run. torch is imported only where they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REFUSED = "does not have a deterministic implementation"
"""Part of torch's message on an operation that is refused."""


@contextmanager
def ordered_sums(wanted: bool) -> Iterator[None]:
    """Let torch take only kernels that add in a fixed order while the block runs, if that is `wanted`.

    On a GPU, the backward passes of attention and of embeddings add in the order in which threads arrive, unless told
    otherwise.

    Raises:
        UserError: an operation has no such kernel.
    """
    if not wanted:
        yield
        return
    import torch

    # cuBLAS reads it when CUDA starts; torch refuses products without it.
    os.environ.setdefault(WORKSPACE, ":4096:8")
    new_memory: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), new_memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # torch would also write to all new memory, to show who reads what nobody wrote. That costs time.
    new_memory.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if REFUSED not in str(error):
            raise
        raise UserError(
            f"runtime.deterministic=true: {str(error).splitlines()[0].partition(REFUSED)[0]}has no kernel that adds in "
            "a fixed order on this device. Set runtime.deterministic=false."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        new_memory.fill_uninitialized_memory = filled

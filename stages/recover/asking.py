"""A model under training, as it is while it is asked: scored for the curve, or made to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from stages.decoders.packed_attention import stock_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def asking(model: PreTrainedModel, dtype: str) -> Iterator[None]:
    """Ask with dropout off, with the attention that scorer and generator have masks for, and without compilation.

    The precision is that of the training, `dtype`. The model stays in its evaluation mode.
    """
    model.eval()
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    with stock_attention(model), autocast, torch.compiler.set_stance("force_eager"):
        yield

"""Attention over documents packed end to end, in which each document sees only itself.

`packed_attention` is one call for all documents where the device has a kernel for variable lengths
(`stages.decoders.variable_length`). Elsewhere the sequence is split at document ends. Both need no padding and do no
work between documents. For documents of 128 tokens the split runs twice as fast on a CPU as one masked call over
sequences of 512.

Shapes: B batch (1), H query heads, K key/value heads, T tokens, S keys, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from stages.decoders import sdpa
from stages.decoders.variable_length import CAUSAL, Kernel, kernel_for
from stages.errors import UserError
from stages.rows.packing import Batch, Document, Layout, collate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "packed_documents"
STOCK = "sdpa"
"""transformers' own attention. Every model that lets its attention be replaced has it."""
AFTER_PREFIX = "_after_prefix"
"""The ending of both names for models with a prefix before every document (`.adapters.prefix_attention`)."""


# Lengths of documents change with every batch. Inside a compiled layer they would cause a compilation each time.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_layout: Layout | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return causal attention [B, T, H, D] within each document. Without a layout the sequence is one document.

    Keys and values of shared tokens are gathered from where they lie, for each document that continues from them.

    Raises:
        UserError: a document is longer than the model's attention window, and documents are attended to one by one.
    """
    layout = document_layout or Layout((query_BHTD.shape[2],))
    kernel = kernel_for(query_BHTD.device, query_BHTD.dtype, query_BHTD.shape[-1], dropout=dropout)
    parts = (query_BHTD, key_BKTD, value_BKTD)
    if kernel is not None:
        return in_one_call(kernel, *parts, layout, scaling=scaling, window=sliding_window), None
    return one_by_one(*parts, layout, scaling=scaling, window=sliding_window, dropout=dropout), None


def in_one_call(
    kernel: Kernel,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    layout: Layout,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Return attention [B, T, H, D] by one call of `kernel`, whose shapes don't depend on where documents end."""
    # `squeeze`, because the backward pass of an index makes a tensor of zeros and copies the gradient into it.
    query_THD, key_SKD, value_SKD = (part.squeeze(0).transpose(0, 1) for part in (query_BHTD, key_BKTD, value_BKTD))
    if layout.shared is not None:
        key_SKD, value_SKD = (part.index_select(0, layout.shared.sources_S) for part in (key_SKD, value_SKD))
    # A token sees itself and the window's other tokens before it.
    sees = CAUSAL if window is None else (window - 1, 0)
    return kernel(query_THD, key_SKD, value_SKD, layout.bounds(query_THD.device), sees, scaling)[None]


def one_by_one(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    layout: Layout,
    *,
    scaling: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return attention [B, T, H, D] by one call of SDPA a document: the reference, and what a CPU does.

    Raises:
        UserError: a document is longer than `window`.
    """
    if window is not None and max(layout.reach) > window:
        raise UserError(f"rows may have {window} tokens: set recover.sequence_length={window} or less.")
    if layout.shared is not None:
        key_BKTD, value_BKTD = (part.index_select(2, layout.shared.sources_S) for part in (key_BKTD, value_BKTD))
    # `split` instead of slices: its backward pass is one concatenation, each slice's would be a tensor full of zeros.
    queries = torch.split(query_BHTD, list(layout.lengths), dim=2)
    keys, values = (torch.split(part, list(layout.reach), dim=2) for part in (key_BKTD, value_BKTD))
    with sdpa.without_plans(query_BHTD.device):
        outputs = [
            sdpa.attention(*document, scaling=scaling, dropout=dropout).transpose(1, 2)
            for document in zip(queries, keys, values, layout.masks, strict=True)
        ]
    return torch.cat(outputs, dim=1)


AttentionInterface.register(NAME, packed_attention)


def shares_beginnings(model: PreTrainedModel) -> bool:
    """Return whether `model` reads batches whose documents share their beginnings (`collate`)."""
    return bool(model.config._attn_implementation == NAME)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make `model` attend within documents.

    Raises:
        UserError: the model's own code bypasses transformers' attention interface.
    """
    set_attention(model, NAME)
    _check_isolation(model)


@contextmanager
def stock_attention(model: PreTrainedModel) -> Iterator[None]:
    """Give a model that attends within documents transformers' own attention, with masks, while the block runs."""
    set_attention(model, STOCK)
    try:
        yield
    finally:
        set_attention(model, NAME)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Make `model` attend by the function registered as `name`, or by its variant for layers that have a prefix."""
    if any(hasattr(module, "prefix") for module in model.modules()):
        name += AFTER_PREFIX
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


@torch.no_grad()
def _check_isolation(model: PreTrainedModel) -> None:
    """Run a document alone and after another one. Code that ignores the layout would let documents see each other."""
    document, other = (Document([token] * 4, 0, "", cut=False) for token in (1, 2))
    alone = hidden_states(model, collate([document], str(model.device)))
    packed = hidden_states(model, collate([other, document], str(model.device)))[4:]
    tolerance = 1e-3 if alone.dtype == torch.float32 else 5e-2
    if (alone - packed).abs().max() > tolerance * alone.abs().max():
        raise UserError(
            f"{type(model).__name__} does not use transformers' attention interface, so documents packed into one "
            "sequence would see each other. Use a model whose modelling code does."
        )


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the decoder's last hidden states [T, hidden size]. The loss applies the vocabulary head itself."""
    output = model.get_decoder()(
        input_ids=batch.input_ids_1T,
        position_ids=batch.position_ids_1T,
        document_layout=batch.layout,
        use_cache=False,
    )
    return output.last_hidden_state.squeeze(0)  # type: ignore[no-any-return]

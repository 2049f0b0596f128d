"""Attention in which every document begins with the same trained keys and values, whichever function computes it.

The keys and values belong to the attention modules. The functions here put them before a document's own keys and values
and call another attention function. So training on packed documents, the scorer's trees, `generate` and a cache of past
keys all see one model. A cache has a document's own keys alone.

PEFT has the prefix in the cache at positions 0 to P-1, so that a document's first token is at position P. Here that
token is at 0, as without a prefix. The keys are kept as PEFT keeps them, and turned back by P positions: with rotary
embeddings (arXiv 2104.09864) only the difference counts, (R(P+i) q) · k = (R(i) q) · (R(-P) k).

Shape legend: B batch, H query heads, K key/value heads, T tokens, S keys, P virtual tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stages.decoders.packed_attention import AFTER_PREFIX, NAME, STOCK, packed_attention, set_attention
from stages.errors import UserError
from stages.inference.decoder import STATIC_ROTARY
from stages.rows.packing import Layout

Attention = Callable[..., tuple[Tensor, None]]
Pairs = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each [K, P, D]."""


class Prefix(nn.Module):
    """The trained keys and values of one layer, at positions 0 to P-1, and the rotation that turns the keys back.

    Attributes:
        multiply_accumulates: multiply-accumulates a token that the prefix adds to those of the layer.
    """

    cos_R: Tensor
    sin_R: Tensor

    def __init__(self, keys_KPD: Tensor, values_KPD: Tensor, cos_R: Tensor, sin_R: Tensor, heads: int) -> None:
        super().__init__()
        self.keys, self.values = nn.Parameter(keys_KPD), nn.Parameter(values_KPD)
        self.register_buffer("cos_R", cos_R, persistent=False)
        self.register_buffer("sin_R", sin_R, persistent=False)
        self.multiply_accumulates = 2 * heads * keys_KPD[0].numel()

    def forward(self, like_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [B, K, P, D], in the precision of a document's own keys."""
        # Some models rotate only the first part of a head's dimensions.
        turning, still = torch.tensor_split(self.keys, [self.cos_R.numel()], dim=-1)
        one, other = turning.chunk(2, dim=-1)
        turned = turning * self.cos_R - torch.cat([-other, one], dim=-1) * self.sin_R
        pair = (torch.cat([turned, still], dim=-1), self.values)
        keys, values = (part.to(like_BKTD.dtype).expand(like_BKTD.shape[0], -1, -1, -1) for part in pair)
        return keys, values


def after_prefix(attention: Attention) -> Attention:
    """Return `attention` in which every document's tokens see the module's prefix as well."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        module: Any,
        query_BHTD: Tensor,
        key_BKSD: Tensor,
        value_BKSD: Tensor,
        attention_mask: Tensor | None,
        document_layout: Layout | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        prefix = module.prefix(key_BKSD)
        tokens = query_BHTD.shape[2]
        # A mask is widened by the prefix. A single token, the next one of `generate`, sees everything and needs none.
        if attention_mask is not None or tokens == 1:
            key, value = (torch.cat(pair, dim=2) for pair in zip(prefix, (key_BKSD, value_BKSD), strict=True))
            if attention_mask is not None:
                # A mask of booleans says what is seen; one of numbers is added to the scores.
                seen = True if attention_mask.dtype == torch.bool else 0.0
                attention_mask = F.pad(attention_mask, (prefix[0].shape[2], 0), value=seen)
            return attention(module, query_BHTD, key, value, attention_mask, **options)
        # Causal attention without a mask has fast kernels, and takes as many queries as keys. So the prefix gets idle
        # queries, whose outputs are cut off at the end.
        lengths = list(document_layout.lengths if document_layout else (tokens,))
        virtual = prefix[0].shape[2]
        idle = query_BHTD.new_zeros(1, 1, 1, 1).expand(*query_BHTD.shape[:2], virtual, query_BHTD.shape[3])
        parts = zip((idle, *prefix), (query_BHTD, key_BKSD, value_BKSD), strict=True)
        query, key, value = (_before_each(first, tensor, lengths) for first, tensor in parts)
        longer = [virtual + length for length in lengths]
        packed = {"document_layout": Layout(tuple(longer))} if document_layout else {}
        output, _ = attention(module, query, key, value, None, **packed, **options)
        return torch.cat([part[:, virtual:] for part in torch.split(output, longer, dim=1)], dim=1), None

    return attend  # type: ignore[no-any-return]


def _before_each(first: Tensor, tensor: Tensor, lengths: list[int]) -> Tensor:
    """Return the documents of `tensor`, laid end to end along dimension 2, each with `first` before it."""
    return torch.cat([part for document in torch.split(tensor, lengths, dim=2) for part in (first, document)], dim=2)


AttentionInterface.register(NAME + AFTER_PREFIX, after_prefix(packed_attention))
AttentionInterface.register(STOCK + AFTER_PREFIX, after_prefix(sdpa_attention_forward))
AttentionMaskInterface.register(STOCK + AFTER_PREFIX, sdpa_mask)


def add_prefix(model: PreTrainedModel, pairs: Pairs) -> None:
    """Put keys and values before what each layer of `model` attends to, in place; nothing else is trained.

    Raises:
        UserError: the layers attend within a window, or their positions are not fixed rotations.
    """
    decoder = model.get_decoder()
    _check(decoder)
    model.requires_grad_(False)
    cos_R, sin_R = _rotation(decoder.rotary_emb, pairs[0][0])
    for layer, (keys_KPD, values_KPD) in zip(decoder.layers, pairs, strict=True):
        attention = layer.self_attn
        heads = attention.num_key_value_groups * len(keys_KPD)
        attention.prefix = Prefix(keys_KPD, values_KPD, cos_R, sin_R, heads)
    # Chosen anew, because only now do the layers have a prefix, which decides the function that they attend by.
    set_attention(model, NAME if model.config._attn_implementation == NAME else STOCK)


def _check(decoder: Any) -> None:
    if getattr(getattr(decoder, "rotary_emb", None), "rope_type", None) not in STATIC_ROTARY:
        raise UserError("prefix tuning needs rotary embeddings whose angles are fixed. Choose another adapter.")
    if any(getattr(layer.self_attn, "sliding_window", None) for layer in decoder.layers):
        raise UserError(
            "prefix tuning is not for a model that attends within a sliding window, out of which the prefix would "
            "slide. Choose another adapter."
        )


def _rotation(rotary: Any, keys_KPD: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotation by P positions."""
    # Without the rotary embedding's factor, which a key has taken up already when it was first rotated.
    position_11 = torch.full((1, 1), keys_KPD.shape[1], device=keys_KPD.device)
    cos_11R, sin_11R = rotary(keys_KPD.float(), position_ids=position_11)
    return cos_11R[0, 0] / rotary.attention_scaling, sin_11R[0, 0] / rotary.attention_scaling


@torch.no_grad()
def activations(model: PreTrainedModel, ids_P: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of every layer of `model` for the tokens `ids_P`, in float32."""
    cache = model.get_decoder()(input_ids=ids_P[None], use_cache=True).past_key_values
    return [(layer.keys[0].float().clone(), layer.values[0].float().clone()) for layer in cache.layers]


def prefixes(adapted: nn.Module) -> list[Prefix]:
    """Return the prefix of every layer, first to last."""
    return [module for module in adapted.modules() if isinstance(module, Prefix)]

"""A llama-like decoder's forward pass over many sequences laid end to end, without padding and without gradients.

Matrix products see one stream of tokens. Only attention sees where a sequence begins, through a function that the
caller passes (`Attend`). A sequence therefore costs what it holds, whatever its neighbours' lengths.

q, k and v are one product, because k and v alone are too narrow for a fast one. Their weights are joined once, and the
model's own modules become views of the joined weights. Where weights change or carry an adapter, they are left apart,
and an adapter's layer computes its own output. All else is done by the model's own modules, with granite's
factors on the embeddings and on what its sub-layers add.

Shapes: T tokens of the stream, H hidden size, Q query heads, K key/value heads, D head size, E MLP channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Maps (layer, q [T, Q, D], k [T, K, D], v [T, K, D], scaling) to what attention gives each token, [T, Q, D]."""
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend on a token's position alone."""

FEW = 64
"""Number of inputs from which a matrix product is as fast as it gets."""


@dataclass(frozen=True, slots=True)
class _Joined:
    """Linear maps of one input, as a single product."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, maps: Sequence[nn.Linear]) -> _Joined:
        """Join `maps`. Their weights become rows of the joined weight."""
        weight = torch.cat([linear.weight.detach() for linear in maps])
        bias = None if maps[0].bias is None else torch.cat([linear.bias.detach() for linear in maps])
        for linear, rows in zip(maps, torch.split(weight, [linear.out_features for linear in maps]), strict=True):
            # A view: the model stays whole, and its weights are in memory once.
            linear.weight.data = rows
        return cls(weight, bias)


@dataclass(frozen=True, slots=True)
class _Apart:
    """Linear maps of one input, each a product of its own."""

    maps: Sequence[nn.Module]


def product(linear: nn.Module | _Joined | _Apart, x_TI: Tensor) -> Tensor:
    """Return a linear map's outputs for T inputs. On a processor, the product of a few inputs is computed transposed.

    The weights' rows then make a large matrix product of what would be a small one: twice as fast at 16 to 48 inputs.
    """
    if isinstance(linear, _Apart):
        return torch.cat([product(one, x_TI) for one in linear.maps], dim=-1)
    # A subclass of Linear, or a layer around one, such as an adapter's, must run its own forward pass.
    if not isinstance(linear, _Joined) and type(linear) is not nn.Linear:
        own_TO: Tensor = linear(x_TI)
        return own_TO
    if len(x_TI) >= FEW or x_TI.device.type != "cpu":
        return F.linear(x_TI, linear.weight, linear.bias)
    out_TO = (linear.weight @ x_TI.t()).t().contiguous()
    return out_TO if linear.bias is None else out_TO + linear.bias


class _Layer:
    """One decoder layer: its own modules, with the products that have one input joined."""

    def __init__(self, layer: Any, *, joined: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before_attention, self.before_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self.head_dim, self.scaling = int(attention.head_dim), float(attention.scaling)
        self.heads = _plain(attention.q_proj).out_features // self.head_dim
        self.key_heads = _plain(attention.k_proj).out_features // self.head_dim
        read = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = _Joined.of(read) if joined else _Apart(read)
        self.head_norms = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        self.output = attention.o_proj
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        # In place, because nothing else reads the gate's output.
        self.activation = nn.SiLU(inplace=True) if type(mlp.act_fn) is nn.SiLU else mlp.act_fn
        self.residual = float(getattr(layer, "residual_multiplier", 1.0))

    def __call__(self, index: int, hidden_TH: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, attend: Attend) -> Tensor:
        heads_TND = torch.unflatten(product(self.qkv, self.before_attention(hidden_TH)), -1, (-1, self.head_dim))
        # q and k lie side by side, so one rotation serves both.
        qk_TND, v_TKD = torch.split(heads_TND, [self.heads + self.key_heads, self.key_heads], dim=1)
        if self.head_norms:
            parts = torch.split(qk_TND, [self.heads, self.key_heads], dim=1)
            qk_TND = torch.cat([norm(part) for norm, part in zip(self.head_norms, parts, strict=True)], dim=1)
        rotated_TND = _rotated(qk_TND, cos_T1D, sin_T1D)
        q_TQD, k_TKD = torch.split(rotated_TND, [self.heads, self.key_heads], dim=1)
        attended_TI = attend(index, q_TQD, k_TKD, v_TKD, self.scaling).flatten(1)
        # In place: without gradients, nothing needs the stream as it was.
        hidden_TH.add_(product(self.output, attended_TI), alpha=self.residual)
        normed_TH = self.before_mlp(hidden_TH)
        gated_TE = self.activation(product(self.gate, normed_TH)).mul_(product(self.up, normed_TH))
        return hidden_TH.add_(product(self.down, gated_TE), alpha=self.residual)


class FlatDecoder:
    """The decoder of `model` on a stream of tokens.

    With `joined` off, no weights are joined: they may change, and linear maps may be inside the layers of an adapter.

    Raises:
        UnknownDecoder: the model is not built as llama is. A decoder of the same modules that computes something else
            is not noticed here: whoever builds one compares it with the model's own forward pass.
    """

    def __init__(self, model: PreTrainedModel, *, joined: bool = True) -> None:
        decoder = model.get_decoder()
        _check(decoder, joined=joined)
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.embedding = float(getattr(decoder, "embedding_multiplier", 1.0))
        self.layers = [_Layer(layer, joined=joined) for layer in decoder.layers]
        self.head_size = self.layers[0].head_dim

    def __call__(self, tokens_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Return the last hidden states, [T, H], after the final norm."""
        hidden_TH = self.embed(tokens_T)
        if self.embedding != 1:
            hidden_TH.mul_(self.embedding)
        cos_1TD, sin_1TD = self.rotary(hidden_TH, position_ids=positions_T[None])
        cos_T1D, sin_T1D = cos_1TD[0, :, None], sin_1TD[0, :, None]
        for index, layer in enumerate(self.layers):
            hidden_TH = layer(index, hidden_TH, cos_T1D, sin_T1D, attend)
        normed: Tensor = self.norm(hidden_TH)
        return normed


class UnknownDecoder(Exception):
    """A decoder that is not built as `FlatDecoder` expects."""


def _rotated(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Return the heads turned by their positions' angles (RoFormer, arXiv 2104.09864, in llama's half-split layout)."""
    half = x_TND.shape[-1] // 2
    rotated = x_TND * cos_T1D
    rotated[..., :half].addcmul_(x_TND[..., half:], sin_T1D[..., :half], value=-1)
    rotated[..., half:].addcmul_(x_TND[..., :half], sin_T1D[..., half:])
    return rotated


def _plain(linear: Any) -> Any:
    """Return the linear map inside an adapter's layer, or the map itself."""
    return getattr(linear, "base_layer", linear)


def _check(decoder: Any, *, joined: bool) -> None:
    """Raise unless `decoder` consists of a llama's modules and, unless they are `joined`, of adapters around them."""
    _require(_children(decoder) == {"embed_tokens", "layers", "norm", "rotary_emb"}, decoder)
    _require(type(decoder.embed_tokens) is nn.Embedding, decoder)
    _require(getattr(decoder.rotary_emb, "rope_type", None) in STATIC_ROTARY, decoder.rotary_emb)
    for layer in decoder.layers:
        _require(_children(layer) == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}, layer)
        attention, mlp = layer.self_attn, layer.mlp
        projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
        _require(_children(attention) - projections in (set(), {"q_norm", "k_norm"}), attention)
        _require(projections <= _children(attention), attention)
        _require(_children(mlp) == {"gate_proj", "up_proj", "down_proj", "act_fn"}, mlp)
        linears: list[Any] = [getattr(attention, name) for name in sorted(projections)]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        # A subclass or a hook may compute more than the product, as adapters do.
        inner = linears if joined else [_plain(linear) for linear in linears]
        _require(all(type(linear) is nn.Linear for linear in inner), layer)
        _require(not any(linear._forward_hooks for linear in (*linears, *inner)), layer)
        # Some families turn only a part of each head.
        _require(decoder.rotary_emb.inv_freq.numel() * 2 == attention.head_dim, attention)


def _children(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


def _require(fulfilled: bool, module: Any) -> None:
    if not fulfilled:
        raise UnknownDecoder(f"{type(module).__name__} is not built as llama's")

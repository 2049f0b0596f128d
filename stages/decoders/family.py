"""The record of a model family, of which `stages.decoders.registry` has one for each. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of the linear maps in a layer's attention and MLP.

    Maps that share a name are fused, in the order query, key, value or gate, up.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """Another family's stock architecture that computes the same to the bit, for shapes that the own one refuses.

    Attributes:
        family: the family whose architecture it is. It has no biases.
        unknown: config fields that mean nothing to that architecture.
        fixed: config fields with which it computes the same.
        called: the model's description in words.
    """

    family: str
    unknown: tuple[str, ...]
    fixed: Mapping[str, Any]
    called: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """The architecture by which llama.cpp computes a family, according to its src/models/*.cpp.

    Attributes:
        architecture: its name in llama.cpp. It takes one shape for all layers, each with attention and MLP.
        differing: name of an architecture that computes the same with a shape for each layer, or None.
        llama_order: whether it turns neighbouring rows of q and k, as the original llama does. Hugging Face turns row i
            with row i + head_dim/2. Architectures of this kind also read biases, and Llama 3's rotary scaling.
        activation: the MLP's activation. Any other is refused.
        numbers: config fields that it reads, by their key in the file. A field that is not set is left out.
        wants: config fields without which it computes something else.
        ignores: config fields that it does not know, and that must not be set.
        windows: every how many layers one attends to all text, the others within a sliding window. It is llama.cpp's
            own number, for which no file has a field that every version reads. 0: no layer of the architecture has a
            window, so the context is cut to the config's.
        largest: number of layers by which it knows the family's largest model. It scales that model's queries by the
            hidden size per head, any other model's by the size of a head. None: it scales as the config says.
        filling_heads: whether its heads must fill the hidden size.
        tied_head: whether it takes the embeddings where the file has no output matrix.
    """

    architecture: str
    differing: str | None = None
    llama_order: bool = False
    activation: str = "silu"
    numbers: Mapping[str, str] = field(default_factory=dict)
    wants: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    windows: int = 0
    largest: int | None = None
    filling_heads: bool = False
    tied_head: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The ways in which a family's decoder differs from "projections without bias, a norm before each sub-layer".

    Attributes:
        qkv_bias: whether q, k and v have a bias, or the name of the config field that says so.
        o_bias: the same for the attention's output projection.
        mlp_bias: the same for gate, up and down.
        attention_norms: the RMSNorms of hidden size that belong to a layer's attention.
        mlp_norms: the RMSNorms of hidden size that belong to a layer's MLP.
        head_norms: RMSNorms on q and on k: one for each head alike ("each"), or one over all heads at once ("all").
        norm_offset: the number added to the norms' weights where they are multiplied.
        scaled_embedding: whether embeddings are multiplied by the square root of the hidden size.
        defaults: values of the config fields that a `config.json` of the family may leave out.
        names: names of the linear maps in a live layer.
        stand_in: an architecture for uniform shapes that the family's own architecture refuses, if there is one.
        gguf: how llama.cpp computes the family; None where it does not.
    """

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    head_norms: Literal["", "each", "all"] = ""
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Names = field(default_factory=Names)
    stand_in: StandIn | None = None
    gguf: Gguf | None = None

    @property
    def plain_outputs(self) -> bool:
        """Whether outputs of sub-layers are added to the residual stream as they are, without a norm of their own."""
        return self.attention_norms == ("input_layernorm",) and self.mlp_norms == ("post_attention_layernorm",)

"""What can be said of a model family: the record that `stages.decoders.registry` has of each. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of the linear maps in a layer's attention and MLP.

    Maps of one name are fused, in the order query, key, value or gate, up.
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
    """Another family's stock architecture, which computes the same to the bit, for shapes that the own one refuses.

    Attributes:
        family: whose architecture it is; it has no biases.
        unknown: config fields that mean nothing to it.
        fixed: config fields that make it compute the same.
        called: what the model is then, in words.
    """

    family: str
    unknown: tuple[str, ...]
    fixed: Mapping[str, Any]
    called: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """The architecture by which llama.cpp computes a family, as its src/models/*.cpp have it.

    Attributes:
        architecture: its name there. It takes one shape for all layers, each with attention and MLP.
        differing: name of one that computes the same with a shape for each layer, or none.
        llama_order: whether it turns neighbouring rows of q and k, as the original llama does, where Hugging Face turns
            row i with row i + head_dim/2. These also read biases, and Llama 3's rotary scaling.
        activation: of the MLP; another one is refused.
        numbers: config fields that it reads, by their key in the file; a field that is not set is left out.
        wants: config fields without which it computes something else.
        ignores: config fields that it does not know, and that must not be set.
        windows: whether some of its layers attend within a sliding window; else the context is cut to the window.
        largest: number of layers by which it knows the family's largest model, whose queries it scales by the hidden
            size per head; any other model's by the size of a head. None: it scales as the config says.
        filling_heads: whether its heads must fill the hidden size.
        tied_head: whether it takes the embeddings where no output matrix is in the file.
    """

    architecture: str
    differing: str | None = None
    llama_order: bool = False
    activation: str = "silu"
    numbers: Mapping[str, str] = field(default_factory=dict)
    wants: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    windows: bool = False
    largest: int | None = None
    filling_heads: bool = False
    tied_head: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a family's decoder differs from "projections without bias, a norm before each sub-layer".

    Attributes:
        qkv_bias: whether q, k and v have a bias, or the name of the config field that says so.
        o_bias: the same for the attention's output projection.
        mlp_bias: the same for gate, up and down.
        attention_norms: a layer's RMSNorms of hidden size that belong to its attention.
        mlp_norms: those that belong to its MLP.
        head_norms: an RMSNorm on q and one on k: of each head alike ("each"), or over all heads at once ("all").
        norm_offset: added to the weights of the norms where they are multiplied.
        scaled_embedding: whether embeddings are multiplied by the square root of the hidden size.
        defaults: values of the config fields that a `config.json` of the family may leave out.
        names: of the linear maps in a live layer.
        stand_in: what takes a uniform shape that the family's own architecture refuses, if anything does.
        gguf: how llama.cpp computes it; None where it doesn't.
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

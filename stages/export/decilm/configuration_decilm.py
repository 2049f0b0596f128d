"""The configuration of a llama whose layers differ in shape, in the DeciLM format (`model_type: nemotron-nas`).

A copy of this file lies in exported directories. Servers read `block_configs` as objects, one for each layer:

    attention.no_op, attention.n_heads_in_group    no attention; else query heads that share a key/value head
    ffn.no_op, ffn.intermediate_size               no MLP; else its width
    ffn.ffn_mult                                   a factor that gives the width; only there where a server needs it
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Record(dict):  # type: ignore[type-arg]
    """A mapping whose fields are attributes too. As a mapping, it is written to config.json as it is."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def record(value: Any) -> Any:
    """Return `value` with every mapping in it as a `Record`."""
    return Record({name: record(item) for name, item in value.items()}) if isinstance(value, dict) else value


class DeciLMConfig(LlamaConfig):
    """Llama's configuration with a record for each layer, and with a flag of its own for biases on q, k and v."""

    model_type = "nemotron-nas"

    def __init__(
        self, block_configs: list[dict[str, Any]] | None = None, qkv_bias: bool = False, **fields: Any
    ) -> None:
        # Transformers 5 checks a llama's query heads against its hidden size, whatever `head_dim` says, in this call.
        # So it is told of one head, which divides every size, and the numbers that follow from heads are set here.
        heads = fields.get("num_attention_heads", 32)
        super().__init__(**{**fields, "num_attention_heads": 1})
        self.num_attention_heads = heads
        if fields.get("num_key_value_heads") is None:
            self.num_key_value_heads = heads
        if fields.get("head_dim") is None:
            self.head_dim = self.hidden_size // heads
        self.block_configs = [record(block) for block in block_configs or []]
        self.qkv_bias = qkv_bias
        # Servers read the rotary embedding's numbers in the spelling of transformers 4 or 5, whichever is installed.
        parameters = getattr(self, "rope_parameters", None)
        if parameters is None:
            scaling = getattr(self, "rope_scaling", None) or {"rope_type": "default"}
            parameters = self.rope_parameters = {**scaling, "rope_theta": fields.get("rope_theta", 10000.0)}
        self.rope_theta = parameters["rope_theta"]

    def validate(self) -> None:
        """Accept any number of heads where a configuration is saved, as where it is made."""

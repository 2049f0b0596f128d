"""The tensors that a DeciLM directory must have, by its config.json: llama's names, without those of absent parts."""

from __future__ import annotations

from collections.abc import Iterator

from stages.stage import JSON

Shape = tuple[int, ...]
COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Parts of names of buffers that old checkpoints carry, and that every reader skips."""


def expected(fields: JSON) -> dict[str, Shape]:
    """Return the name and shape of every tensor of the model whose config.json has `fields`."""
    hidden, vocabulary = fields["hidden_size"], fields["vocab_size"]
    found: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not fields["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocabulary, hidden)
    for index, block in enumerate(fields["block_configs"]):
        layer = f"model.layers.{index}"
        if not block["attention"]["no_op"]:
            found |= _attention(layer, block["attention"], fields)
        if not block["ffn"]["no_op"]:
            found |= _mlp(layer, block["ffn"], fields)
    return found


def superfluous(name: str, fields: JSON) -> bool:
    """Return whether readers skip a tensor of this name, so that it may be there."""
    return any(part in name for part in COMPUTED) or (name == "lm_head.weight" and fields["tie_word_embeddings"])


def _attention(layer: str, attention: JSON, fields: JSON) -> dict[str, Shape]:
    hidden, size, heads = fields["hidden_size"], fields["head_dim"], fields["num_attention_heads"]
    queries, keys = heads * size, heads // attention["n_heads_in_group"] * size
    maps = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    found: dict[str, Shape] = {f"{layer}.input_layernorm.weight": (hidden,)}
    found |= dict(_maps(f"{layer}.self_attn", maps, fields["qkv_bias"]))
    return found | dict(_maps(f"{layer}.self_attn", {"o_proj": (hidden, queries)}, fields["attention_bias"]))


def _mlp(layer: str, ffn: JSON, fields: JSON) -> dict[str, Shape]:
    hidden, width = fields["hidden_size"], ffn["intermediate_size"]
    maps = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    return {
        f"{layer}.post_attention_layernorm.weight": (hidden,),
        **dict(_maps(f"{layer}.mlp", maps, fields["mlp_bias"])),
    }


def _maps(part: str, maps: dict[str, tuple[int, int]], bias: bool) -> Iterator[tuple[str, Shape]]:
    for name, shape in maps.items():
        yield f"{part}.{name}.weight", shape
        if bias:
            yield f"{part}.{name}.bias", shape[:1]

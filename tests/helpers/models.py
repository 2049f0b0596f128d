"""Models of every kind that is scored: plain, pruned layer by layer, with an adapter, with another's computation."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from helpers.decoders import decoder
from helpers.questions import reader
from helpers.tiny_tokenizer import VOCABULARY
from stages.decoders.modeling_pruned import PrunedLlamaConfig, PrunedLlamaForCausalLM


def per_layer_llama(*shapes: list[int]) -> PrunedLlamaForCausalLM:
    fields = reader().config.to_dict()
    fields = {key: value for key, value in fields.items() if key not in ("model_type", "architectures")}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return PrunedLlamaForCausalLM(PrunedLlamaConfig(**fields, layer_shapes=list(shapes))).eval()


def adapted_llama() -> Any:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return get_peft_model(reader(), config).eval()


def gemma2() -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        sliding_window=512,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Gemma2ForCausalLM(config).eval()


def qwen(kind: str) -> Any:
    config_class, model_class = {"2": (Qwen2Config, Qwen2ForCausalLM), "3": (Qwen3Config, Qwen3ForCausalLM)}[kind]
    fields = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    fields |= {"max_position_embeddings": 512, "head_dim": 8} if kind == "3" else {"max_position_embeddings": 512}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = model_class(config_class(**fields))
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "_norm" in name:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.eval()


MODELS = {
    "llama": reader,
    "mistral with a head count that does not divide": lambda: reader(
        "mistral", num_attention_heads=5, num_key_value_heads=5, head_dim=8
    ),
    "mistral whose sliding window bites": lambda: reader("mistral", sliding_window=6),
    "one shape a layer": lambda: per_layer_llama([6, 3, 40], [2, 1, 16], [4, 2, 24]),
    "layers without a sub-layer": lambda: per_layer_llama([0, 0, 40], [2, 1, 0], [4, 2, 24]),
    "with an adapter": adapted_llama,
    "soft-capped logits": gemma2,
    "biases on q, k and v": lambda: qwen("2"),
    "norms on q and k": lambda: qwen("3"),
    "fused projections": lambda: decoder("phi3", vocab_size=VOCABULARY, max_position_embeddings=512),
    "factors on embeddings, sub-layers and logits": lambda: decoder(
        "granite", vocab_size=VOCABULARY, max_position_embeddings=512
    ),
    "norms after the sub-layers": lambda: decoder("olmo2", vocab_size=VOCABULARY, max_position_embeddings=512),
}
"""By what sets them apart."""

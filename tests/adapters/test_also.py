"""Norms and biases trained beside an adapter: saved with it, merged with it, and in plain PEFT's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from helpers.decoders import decoder, token_ids
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import adapter_config, config, recovered, resumed
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.recover.seeds import seeded

IDS = token_ids(vocabulary=VOCABULARY)
FAMILIES = {"llama": ["norms"], "qwen2": ["norms", "biases"], "qwen3": ["norms"], "gemma2": ["norms"]}
NAMES = ["rora", "dora", "pissa", "hira", "miss", "shira"]
RATES = {"hira": 1e-1}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


def biased(family: str) -> Any:
    """Return a tiny decoder whose norms and biases are not all ones and zeros."""
    model = decoder(family, vocab_size=VOCABULARY)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_vector_is_trained_saved_merged_and_read_by_plain_peft(tmp_path: Path, family: str, name: str) -> None:
    also = FAMILIES[family] if name in ("rora", "dora", "pissa") else ["norms"]
    model = biased(family)
    with seeded(0), torch.no_grad():
        adapted = ADAPTERS[name].attach(model, adapter_config(name, also=also), ())
        trained = {path: own for path, own in model.named_parameters() if own.requires_grad}
        for parameter in trained.values():
            parameter += 0.1 * torch.randn_like(parameter)
    vectors = {path for path in biased(family).state_dict() if "norm" in path or ("biases" in also and "bias" in path)}
    assert len(vectors) > 6
    assert {path.replace(".base_layer", "") for path in trained} >= vectors

    ADAPTERS[name].save(adapted, tmp_path)  # type: ignore[misc]
    plain = PeftModel.from_pretrained(biased(family), tmp_path)
    merged = ADAPTERS[name].merge(biased(family), tmp_path, ())  # type: ignore[misc]
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)
    before, after = biased(family).state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[path], after[path]) for path in vectors)


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [
        ({"name": "rora", "init": "corda"}, "float32"),
        ({"name": "rora"}, "bfloat16"),
        ({"name": "hira"}, "bfloat16"),
    ],
)
def test_a_recovery_trains_norms_and_resumes_to_the_same_bytes(
    tmp_path: Path, adapter: dict[str, Any], dtype: str
) -> None:
    rate = RATES.get(adapter["name"], 1e-2)
    settings = config(adapter | {"also": ["norms"]}, dtype=dtype, tokens=1000, learning_rate=rate)
    output, summary = recovered(tmp_path, settings)
    alone = recovered(tmp_path, config(adapter, dtype=dtype, tokens=1000, learning_rate=rate), name="alone")[1]
    norms = (2 * 3 + 1) * 48
    assert summary["parameters"]["trainable"] == alone["parameters"]["trainable"] + norms
    assert summary["validation"]["final_loss"] < 0.97 * summary["validation"]["initial_loss"]

    again = resumed(tmp_path, settings, stopped_at=2)
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model/model.safetensors"):
        assert (output / file).read_bytes() == (again / file).read_bytes(), file

    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    final = saved["base_model.model.model.norm.weight"]
    assert final.dtype == torch.float32
    assert not torch.equal(final, torch.ones(48))
    assert torch.equal(load_model(output / "model", dtype="float32").model.norm.weight, final)
    fields = read_json(output / "adapter" / "adapter_config.json")
    assert fields["modules_to_save"] == ["input_layernorm", "norm", "post_attention_layernorm"]


def test_an_adapter_alone_is_saved_as_ever(tmp_path: Path) -> None:
    recovered(tmp_path, config(tokens=300))
    fields = read_json(tmp_path / "out" / "adapter" / "adapter_config.json")
    assert fields["modules_to_save"] is None
    assert fields["bias"] == "none"
    assert all(".lora_" in name for name in load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", ["rora", "dora"])
def test_a_trained_bias_gets_its_gradient(name: str) -> None:
    model = biased("qwen2")
    with seeded(0):
        ADAPTERS[name].attach(model, adapter_config(name, also=["biases"]), ())
    layer: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    x_TI = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    layer(x_TI).square().sum().backward()
    with torch.no_grad():
        expected_O = 2 * layer(x_TI).sum(0)
    torch.testing.assert_close(layer.base_layer.bias.grad, expected_O, atol=1e-4, rtol=1e-4)


def test_what_can_not_be_trained_beside_an_adapter_says_so() -> None:
    with pytest.raises(UserError, match=r"unknown kind of weights in adapter\.also 'norm', did you mean 'norms'\?"):
        ADAPTERS["rora"].check(adapter_config("rora", also=["norm"]))
    with pytest.raises(UserError, match=r"adapter\.also must be \[norms\] or empty with adapter=miss"):
        ADAPTERS["miss"].check(adapter_config("miss", also=["biases"]))
    with pytest.raises(UserError, match=r"adapter\.also: this model has no biases"):
        ADAPTERS["rora"].attach(decoder(vocab_size=VOCABULARY), adapter_config("rora", also=["biases"]), ())

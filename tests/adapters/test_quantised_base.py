"""Adapters on a base whose weights are held in few bits: the results of a plain base with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.packings import PLAIN
from helpers.toy import adapter_config
from stages.adapters.fused import FusedLora
from stages.adapters.registry import ADAPTERS
from stages.decoders.quantised import QuantisedLinear, quantise

OPTIONS = {"series": {"targets": ["o_proj", "down_proj"]}, "parallel": {"targets": ["up_proj"]}}
LEAVES = [name for name, adapter in ADAPTERS.items() if adapter.leaves_base(adapter_config(name))]
IDS = torch.arange(3, 40)[None]


def base(*, packed: bool) -> PreTrainedModel:
    """Return a model with packed layers, or one with the weights that these hold."""
    model = decoder()
    quantise(model, PLAIN, "cpu")
    if packed:
        return model
    plain = decoder()
    for name, layer in model.named_modules():
        if isinstance(layer, QuantisedLinear):
            plain.get_submodule(name).weight.data = layer.weight
    return plain


def trained(name: str, *, packed: bool, autocast: bool = False) -> dict[str, Tensor]:
    """Return the loss and the gradient of every parameter of the adapter `name`."""
    model = base(packed=packed)
    torch.manual_seed(0)
    ADAPTERS[name].attach(model, adapter_config(name, **OPTIONS.get(name, {})), ())
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in trainable.values():  # away from the start, where half of the gradients are zero
        value.data += 0.05 * torch.randn(value.shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    gradients = {name: value.grad for name, value in trainable.items() if value.grad is not None}
    assert gradients
    return {"loss": loss.detach(), **gradients}


def test_the_adapters_that_go_with_a_quantised_base_are_known() -> None:
    assert {"lora", "rora", "dora", "lora_plus", "miss", "prefix", "series", "parallel"} <= set(LEAVES)
    assert not {"full", "pissa", "olora", "hira", "shira"} & set(LEAVES)
    assert not ADAPTERS["lora"].leaves_base(adapter_config("lora", init="corda"))


@pytest.mark.parametrize("name", LEAVES)
def test_loss_and_gradients_are_those_on_the_weights_that_are_held(name: str) -> None:
    torch.testing.assert_close(trained(name, packed=True), trained(name, packed=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rora", "dora"])
def test_under_autocast_too(name: str) -> None:
    found, expected = (trained(name, packed=packed, autocast=True) for packed in (True, False))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 0.01 * float(value.norm()) + 1e-6, name


@pytest.mark.parametrize("dora", [False, True])
def test_the_fused_layer_keeps_no_whole_weight(dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    inner = nn.Sequential(QuantisedLinear(nn.Linear(48, 40).requires_grad_(False), PLAIN, "cpu"))
    config = LoraConfig(r=4, use_dora=dora, target_modules=["0"])
    config._register_custom_module({nn.Linear: FusedLora})
    model = get_peft_model(inner, config)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(3, 48)).sum()
    assert kept
    assert all(tensor.shape != (40, 48) for tensor in kept)

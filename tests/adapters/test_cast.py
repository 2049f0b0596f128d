"""Weights that are cast once a step, against autograd's own casts in every pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.decoders import decoder, token_ids
from helpers.toy import adapter_config
from stages.adapters.cast import Casts
from stages.adapters.registry import ADAPTERS
from stages.recover.seeds import seeded

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rora": {"ranks": {"k_proj": 2, "up_proj": 3}},
    "dora": {"alpha": 3.0},
    "lora_plus": {"dropout": 0.3},
}


def adapted(name: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
    model = decoder().to(dtype)
    with seeded(0):
        ADAPTERS[name].attach(model, adapter_config(name, **options), ())
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.train()


def gradients(model: PreTrainedModel, casts: Casts, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Return the gradients of a step of two micro-batches."""
    with casts.step():
        for index in range(2):
            with seeded(index), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                hidden = model.get_decoder()(token_ids(2, 12, seed=index)).last_hidden_state
            (hidden.float() * torch.linspace(-1, 1, 48)).sum().backward()
            casts.collect()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_as_near_to_float32_as_those_of_casts_in_every_pass(kind: str) -> None:
    exact_model = adapted(kind, torch.float32, **KINDS[kind])
    exact = gradients(exact_model, Casts.of(exact_model, torch.float32), torch.float32)
    model = adapted(kind, **KINDS[kind])
    every_pass, once = (gradients(model, Casts.of(model, dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert once.keys() == every_pass.keys() == exact.keys()
    assert len(once) >= 42
    for name, expected in exact.items():
        assert once[name].dtype == torch.float32
        ours, theirs = (float((found[name] - expected).norm() / expected.norm()) for found in (once, every_pass))
        assert ours <= 1.5 * theirs + 0.02, name


def test_a_step_follows_the_weights_and_leaves_nothing_behind() -> None:
    model = adapted("rora")
    casts = Casts.of(model, torch.bfloat16)
    first, again = (gradients(model, casts) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter *= 2.0
    changed = gradients(model, casts)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert all(not torch.equal(first[name], changed[name]) for name in first)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(token_ids(1, 5))
    assert not any(getattr(module, "maps", None) for module in model.modules())


def test_micro_batches_add_up_in_float32() -> None:
    """A hundred small gradients do not vanish beside a large one, as they would in a sum of bfloat16."""
    model = adapted("lora")
    casts, states = Casts.of(model, torch.bfloat16), model.model.layers[0].self_attn.q_proj
    x, sums = torch.ones(1, 48, dtype=torch.bfloat16), []
    for times in (0, 100):
        with casts.step(), torch.autocast("cpu", torch.bfloat16):
            for scale in (1.0, *[2.0**-9] * times):
                (states(x).float().sum() * scale).backward()
                casts.collect()
        sums.append(states.lora_B["default"].weight.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(sums[1] / sums[0], torch.full_like(sums[0], 1 + 100 * 2.0**-9), rtol=1e-3, atol=0)

"""The fused low-rank layer against PEFT's own: the same outputs and the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from stages.adapters.fused import FusedLora

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora_rs": {"use_dora": True, "use_rslora": True},
}


class Two(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=bias), nn.Linear(40, 12, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))  # type: ignore[no-any-return]


def adapted(fused: bool, *, bias: bool, dropout: float = 0.0, **options: Any) -> PeftModel:
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["first", "second"], **options)
    if fused:
        config._register_custom_module({nn.Linear: FusedLora})
    model = get_peft_model(Two(bias), config)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape) * (1 if "magnitude" in name else 3)
    return model


def outcome(model: PeftModel, *, autocast: bool = False) -> dict[str, Tensor]:
    """Return the output for a batch, and the gradients of the input and of what is trained."""
    torch.manual_seed(3)
    x = torch.randn(2, 9, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(x)
    output.float().pow(2).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach().float(), "x": x.grad, **gradients}  # type: ignore[dict-item]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_pefts(kind: str, bias: bool, dropout: float) -> None:
    expected = outcome(adapted(False, bias=bias, dropout=dropout, **KINDS[kind]))
    found = outcome(adapted(True, bias=bias, dropout=dropout, **KINDS[kind]))
    assert len(expected) >= 6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_they_are_as_near_to_float32_as_pefts(kind: str) -> None:
    exact = outcome(adapted(False, bias=True, **KINDS[kind]))
    apart = {
        fused: {
            name: float((value - exact[name]).norm() / exact[name].norm())
            for name, value in outcome(adapted(fused, bias=True, **KINDS[kind]), autocast=True).items()
        }
        for fused in (False, True)
    }
    for name, ours in apart[True].items():
        assert ours <= 2 * apart[False][name] + 0.01, name


def test_evaluated_and_merged_it_is_pefts_too() -> None:
    for kind, options in KINDS.items():
        stock, fused = (adapted(which, bias=True, **options).eval() for which in (False, True))
        x = torch.randn(5, 24)
        with torch.no_grad():
            torch.testing.assert_close(fused(x), stock(x), rtol=1e-5, atol=1e-5, msg=kind)
            torch.testing.assert_close(fused.merge_and_unload()(x), stock(x), rtol=1e-4, atol=1e-4)  # type: ignore[operator]

"""Recovery of a masked model: the zeros stay, and what is merged is what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.masked import DEAD, IDS, masked_base, same_zeros, weights
from helpers.toy import config, recovered
from stages.adapters.loading import Source
from stages.adapters.registry import ADAPTERS
from stages.decoders.checkpoint import load_model
from stages.decoders.masks import masked_modules


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["dora", "rora"])
def test_the_merged_model_is_what_was_trained_with_exactly_the_zeros_of_the_pruned_one(
    name: str, tmp_path: Path
) -> None:
    base = masked_base(tmp_path)
    settings = config({"name": name})
    output, summary = recovered(tmp_path, settings)
    before, after = weights(base), weights(output / "model")

    assert summary["validation"]["final_loss"] < 0.85 * summary["validation"]["initial_loss"]
    assert summary["masked_modules"] == 21
    assert same_zeros(before, after)
    assert not torch.equal(before[f"{DEAD}.weight"], after[f"{DEAD}.weight"])

    live = load_model(base, dtype="float32")
    adapted = ADAPTERS[name].attach(live, settings.adapter, masked_modules(base))
    set_peft_model_state_dict(adapted, load_file(output / "adapter" / "adapter_model.safetensors"))
    merged = logits(AutoModelForCausalLM.from_pretrained(output / "model"))
    torch.testing.assert_close(logits(live), merged, atol=1e-4, rtol=1e-4)
    shutil.rmtree(output / "model")
    unmerged = Source.of(output, tmp_path / "base").load(dtype="float32")
    torch.testing.assert_close(logits(unmerged), merged, atol=1e-4, rtol=1e-4)


def test_the_update_is_scaling_times_the_masked_product(tmp_path: Path) -> None:
    base = masked_base(tmp_path)
    output, summary = recovered(tmp_path, config({"name": "rora"}, tokens=600))
    adapter = load_file(output / "adapter" / "adapter_model.safetensors")
    before, after = weights(base), weights(output / "model")

    for module in masked_modules(base):
        down_RI, up_OR = (adapter[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        weight_OI = before[f"{module}.weight"]
        expected = weight_OI + summary["adapter"]["scaling"] * (up_OR @ down_RI) * (weight_OI != 0)
        torch.testing.assert_close(after[f"{module}.weight"], expected, atol=1e-6, rtol=1e-5)


def test_peft_alone_gives_the_unmasked_sum_and_the_adapters_card_says_so(tmp_path: Path) -> None:
    base = masked_base(tmp_path)
    output, _ = recovered(tmp_path, config(tokens=900))

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output / "adapter")
    merged = logits(AutoModelForCausalLM.from_pretrained(output / "model"))
    assert not torch.allclose(logits(plain), merged, atol=0.05)
    assert "PEFT knows no mask" in (output / "adapter" / "README.md").read_text()


def test_layers_that_are_not_masked_get_the_plain_adapter(tmp_path: Path) -> None:
    base = masked_base(tmp_path, layers="1", mask_structure="0:0")
    output, summary = recovered(tmp_path, config(tokens=600))
    before, after = weights(base), weights(output / "model")

    assert summary["masked_modules"] == 7
    assert same_zeros(before, after)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output / "adapter").merge_and_unload()
    for name, weight in plain.state_dict().items():
        if name in after and not name.startswith("model.layers.1."):
            assert torch.equal(weight, after[name]), name


def test_in_bfloat16_with_dropout_the_zeros_stay_too(tmp_path: Path) -> None:
    base = masked_base(tmp_path, torch.bfloat16)
    output, summary = recovered(tmp_path, config({"name": "dora", "dropout": 0.1}, dtype="bfloat16", tokens=800))

    assert summary["validation"]["final_loss"] < summary["validation"]["initial_loss"]
    assert same_zeros(weights(base), weights(output / "model"))
    assert {weight.dtype for weight in weights(output / "model").values()} == {torch.bfloat16}


def test_a_model_without_masks_gets_an_adapter_without_the_note(tmp_path: Path) -> None:
    output, summary = recovered(tmp_path, config(tokens=300))

    assert "masked_modules" not in summary
    assert "PEFT knows no mask" not in (output / "adapter" / "README.md").read_text()

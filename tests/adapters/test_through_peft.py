"""HiRA, MiSS and SHiRA against their formulas, on weights whose sizes no rank divides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.decoders import decoder, token_ids
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import adapter_config
from stages.adapters.registry import ADAPTERS
from stages.adapters.through_peft import PeftAdapterConfig
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.recover.seeds import seeded

NAMES = sorted(name for name, adapter in ADAPTERS.items() if issubclass(adapter.config, PeftAdapterConfig))
IDS = token_ids(vocabulary=VOCABULARY)


def changed(name: str, saved: dict[str, Tensor], weight_OI: Tensor) -> Tensor:
    """Return the weight that the adapter's formula makes of `weight_OI`, entry by entry."""
    parts = {key.rpartition(".")[2]: tensor for key, tensor in saved.items()}
    result_OI = weight_OI.clone()
    if name == "hira":
        return weight_OI * (1 + parts["hira_B"] @ parts["hira_A"])
    if name == "shira":
        for (row, column), value in zip(parts["shira_indices"].T.tolist(), parts["shira_weight"], strict=True):
            result_OI[row, column] += value
        return result_OI
    for column in range(weight_OI.shape[1]):
        result_OI[:, column] += parts["miss_block"][column % len(parts["miss_block"])]
    return result_OI


def masked_decoder(dtype: torch.dtype = torch.float32) -> Any:
    """Return a decoder in which a third of every projection is zero."""
    model = decoder(vocab_size=VOCABULARY).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in projections(model).values():
            module.weight *= torch.rand(module.weight.shape, generator=generator) > 1 / 3
    return model


def projections(model: Any) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if name.endswith("_proj")}


def trained(name: str, model: Any, directory: Path, masked: frozenset[str] = frozenset(), **options: Any) -> Any:
    """Give `model` an adapter that has taken a step in a random direction, save it and return the model."""
    with seeded(0), torch.no_grad():
        adapted = ADAPTERS[name].attach(model, adapter_config(name, **options), masked)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn_like(parameter)
    ADAPTERS[name].save(adapted, directory)  # type: ignore[misc]
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_weight_is_the_formulas(tmp_path: Path, name: str, rank: int) -> None:
    attached = trained(name, decoder(vocab_size=VOCABULARY), tmp_path, rank=rank)
    before = {path: module.weight.clone() for path, module in projections(decoder(vocab_size=VOCABULARY)).items()}
    merged = ADAPTERS[name].merge(decoder(vocab_size=VOCABULARY), tmp_path, ())  # type: ignore[misc]
    saved = load_file(tmp_path / "adapter_model.safetensors")

    for path, module in projections(merged).items():
        own = {key: tensor for key, tensor in saved.items() if f".{path}." in key}
        torch.testing.assert_close(module.weight, changed(name, own, before[path]))
        assert not torch.equal(module.weight, before[path])
    torch.testing.assert_close(logits(merged), logits(attached), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_merging_rounds_once_to_the_bases_dtype(tmp_path: Path, name: str) -> None:
    trained(name, decoder(vocab_size=VOCABULARY), tmp_path)
    rounded = decoder(vocab_size=VOCABULARY).to(torch.bfloat16)
    exact = ADAPTERS[name].merge(rounded.float(), tmp_path, ())  # type: ignore[misc]
    merged = ADAPTERS[name].merge(  # type: ignore[misc]
        decoder(vocab_size=VOCABULARY).to(torch.bfloat16), tmp_path, ()
    )

    for path, module in projections(merged).items():
        assert torch.equal(module.weight, exact.get_submodule(path).weight.to(torch.bfloat16)), path


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_model_is_the_same_attached_loaded_and_merged(tmp_path: Path, name: str) -> None:
    masked = frozenset(projections(masked_decoder()))
    attached = trained(name, masked_decoder(), tmp_path, masked)
    loaded = masked_decoder()
    ADAPTERS[name].load(loaded, tmp_path, masked)  # type: ignore[misc]
    merged = ADAPTERS[name].merge(masked_decoder(), tmp_path, masked)  # type: ignore[misc]

    assert (logits(merged) - logits(masked_decoder())).abs().max() > 0.1
    torch.testing.assert_close(logits(attached), logits(merged), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(loaded), logits(merged), atol=1e-4, rtol=1e-4)
    for path, module in projections(masked_decoder()).items():
        assert torch.equal(merged.get_submodule(path).weight == 0, module.weight == 0), path


def test_masked_miss_has_the_gradient_of_its_formula(tmp_path: Path) -> None:
    path = "model.layers.0.mlp.up_proj"
    model = trained("miss", masked_decoder(), tmp_path, frozenset({path}), rank=7)
    layer: Any = model.get_submodule(path)
    x_TI = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    layer(x_TI).square().sum().backward()
    block_RO = layer.miss_block["default"]
    weight_OI = layer.base_layer.weight
    update_OI = torch.stack([block_RO[column % 7] for column in range(48)], dim=1) * (weight_OI != 0)
    (expected,) = torch.autograd.grad((x_TI @ (weight_OI + update_OI).T).square().sum(), block_RO)
    torch.testing.assert_close(block_RO.grad, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("places", ["random", "magnitude"])
def test_shira_trains_as_many_entries_as_lora_of_its_rank_at_the_places_asked_for(tmp_path: Path, places: str) -> None:
    trained("shira", decoder(vocab_size=VOCABULARY), tmp_path, rank=2, places=places)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    chosen = []
    for path, module in projections(decoder(vocab_size=VOCABULARY)).items():
        rows, columns = saved[f"base_model.model.{path}.shira_indices"].long()
        mask = torch.zeros_like(module.weight, dtype=torch.bool)
        mask[rows, columns] = True
        assert int(mask.sum()) == 2 * sum(module.weight.shape) == len(rows)
        if places == "magnitude":
            assert module.weight[mask].abs().min() >= module.weight[~mask].abs().max()
        chosen.append(mask)
    if places == "random":
        same = [mask for mask in chosen if mask.shape == chosen[0].shape]
        assert len(same) > 3
        assert not any(torch.equal(same[0], other) for other in same[1:])


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("miss", 49, r"rank 49 is more than model\.layers\.0\.self_attn\.q_proj .* largest rank is 48"),
        ("hira", 25, r"model\.layers\.0\.self_attn\.k_proj .* largest rank is 24"),
        ("shira", 17, r"model\.layers\.0\.self_attn\.k_proj .* largest rank is 16"),
    ],
)
def test_a_rank_that_no_layer_can_have_is_an_error_when_planned_and_when_attached(
    name: str, rank: int, message: str
) -> None:
    model, settings = decoder(vocab_size=VOCABULARY), adapter_config(name, rank=rank)
    with pytest.raises(UserError, match=message):
        ADAPTERS[name].fits(settings, DecoderShape.from_config(model.config.to_dict()))
    with pytest.raises(UserError, match=message):
        ADAPTERS[name].attach(model, settings, ())


def test_bad_options_and_a_mask_that_leaves_too_few_weights_are_errors() -> None:
    with pytest.raises(UserError, match=r"adapter\.rank must be at least 1"):
        ADAPTERS["hira"].check(adapter_config("hira", rank=0))
    with pytest.raises(UserError, match=r"adapter\.dropout must be in"):
        ADAPTERS["miss"].check(adapter_config("miss", dropout=1.0))
    with pytest.raises(UserError, match=r"adapter\.places must be one of random, magnitude"):
        ADAPTERS["shira"].check(adapter_config("shira", places="largest"))
    model = masked_decoder()
    with pytest.raises(UserError, match=r"rank 14 trains 1,008 entries of each weight of 24 x 48.*Lower adapter\.rank"):
        ADAPTERS["shira"].attach(model, adapter_config("shira", rank=14), frozenset(projections(model)))

"""EVA and CorDA: what a low-rank adapter starts as, against brute force and PEFT, and the recoveries from there."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn

from helpers.decoders import decoder, token_ids
from helpers.masked import masked_base, same_zeros, weights
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import adapter_config, config, recovered, resumed
from stages.adapters.corda import oriented
from stages.adapters.eva import directions
from stages.adapters.low_rank import lora_layers
from stages.adapters.registry import ADAPTERS
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.recover.seeds import seeded

IDS = token_ids(3, 40, VOCABULARY)
NAMES = ("lora", "rora", "dora", "dora_rs", "lora_plus")
STARTS: dict[str, dict[str, Any]] = {
    "eva": {"init": "eva"},
    "knowledge": {"init": "corda", "corda": "knowledge"},
    "instruction": {"init": "corda", "corda": "instruction"},
}
RATES = {"lora_plus": 5e-3}


def inputs_of(model: Any) -> dict[str, Tensor]:
    """Return what every projection of a plain model is given for `IDS`, [T, I] in float64."""
    given: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: given.__setitem__(name, inputs[0].detach().flatten(0, -2).double())
        )
        for name, module in model.named_modules()
        if name.endswith("_proj")
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return given


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


def begun(name: str, model: Any, **options: Any) -> Any:
    """Give `model` an adapter started on `IDS`; returns the adapter's module."""
    settings = adapter_config(name, **options)
    with seeded(0):
        adapted = ADAPTERS[name].attach(model, settings, ())
        ADAPTERS[name].start(adapted, settings, (), lambda tokens: model(IDS))  # type: ignore[misc]
    return adapted


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """Return B and A of a LoRA layer."""
    return layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_start_leaves_the_model_as_it_was_and_trains_as_many_parameters(name: str, start: str) -> None:
    model, plain = decoder(vocab_size=VOCABULARY), decoder(vocab_size=VOCABULARY)
    begun(name, model, **STARTS[start])
    torch.testing.assert_close(logits(model), logits(decoder(vocab_size=VOCABULARY)), atol=1e-4, rtol=1e-4)
    ADAPTERS[name].attach(plain, adapter_config(name), ())
    shapes = [{n: p.shape for n, p in m.named_parameters() if p.requires_grad} for m in (model, plain)]
    assert shapes[0] == shapes[1]


def test_eva_starts_from_the_right_singular_vectors_of_each_layers_inputs() -> None:
    model = decoder(vocab_size=VOCABULARY)
    given = inputs_of(model)
    begun("rora", model, init="eva", ranks={"v_proj": 7})
    for path, layer in lora_layers(model):
        up_OR, down_RI = factors(layer)
        vectors = torch.linalg.svd(given[path], full_matrices=False)[2]
        cosines_R = (down_RI.double() * vectors[: len(down_RI)]).sum(1).abs()
        torch.testing.assert_close(cosines_R, torch.ones_like(cosines_R), atol=1e-4, rtol=0)
        torch.testing.assert_close(down_RI.norm(dim=1), torch.ones(len(down_RI)))
        assert not up_OR.any()
        assert len(down_RI) == (7 if path.endswith("v_proj") else 4)


@pytest.mark.parametrize("tokens", [6, 30, 31, 200])
def test_evas_directions_are_the_same_from_few_and_from_many_tokens(tokens: int) -> None:
    inputs_TI = torch.randn(tokens, 30, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 31)
    found_RI = directions(inputs_TI, 5).double()
    vectors = torch.linalg.svd(inputs_TI.double(), full_matrices=False)[2][:5]
    torch.testing.assert_close((found_RI * vectors).sum(1).abs(), torch.ones(5).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found_RI @ found_RI.T, torch.eye(5).double(), atol=1e-5, rtol=0)


def test_evas_directions_are_orthonormal_where_all_tokens_are_the_same() -> None:
    found_RI = directions(torch.ones(10, 30), 4)
    torch.testing.assert_close(found_RI @ found_RI.T, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found_RI[0].abs(), torch.full((30,), 30**-0.5))


@pytest.mark.parametrize("tokens", [300, 900])
def test_few_of_many_directions_explain_as_much_as_the_exact_ones(tokens: int) -> None:
    inputs_TI = torch.randn(tokens, 400, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 401).sqrt()
    with seeded(0):
        found_RI = directions(inputs_TI, 16)
    torch.testing.assert_close(found_RI @ found_RI.T, torch.eye(16), atol=1e-5, rtol=0)
    vectors = torch.linalg.svd(inputs_TI, full_matrices=False)[2][:16]
    explained, most = (float((inputs_TI @ part.T).square().sum()) for part in (found_RI, vectors))
    assert 0.999 * most < explained <= 1.0001 * most
    with seeded(0):
        assert torch.equal(found_RI, directions(inputs_TI, 16))


@pytest.mark.parametrize("mode", ["knowledge", "instruction"])
@pytest.mark.parametrize(("outputs", "inputs"), [(20, 30), (30, 20)])
def test_corda_is_the_decomposition_of_weight_times_second_moment(mode: str, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(outputs, inputs, generator=generator).double()
    inputs_TI = torch.randn(90, inputs, generator=generator).double() * torch.arange(1, inputs + 1) / 9
    up_OR, down_RI = oriented(weight_OI, inputs_TI, 3, 0.7, mode)

    moment_II = inputs_TI.T @ inputs_TI
    moment_II = moment_II / moment_II.diagonal().mean() + 0.01 * torch.eye(inputs)
    u, s, vt = torch.linalg.svd(weight_OI @ moment_II, full_matrices=False)
    part = slice(0, 3) if mode == "instruction" else slice(len(s) - 3, None)
    root_R = (s[part] / 0.7).sqrt()
    expected_OR, expected_RI = u[:, part] * root_R, root_R[:, None] * vt[part] @ torch.linalg.inv(moment_II)
    torch.testing.assert_close(up_OR @ down_RI, (expected_OR @ expected_RI).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(up_OR.abs(), expected_OR.abs().float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(down_RI.abs(), expected_RI.abs().float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "theirs"), [("knowledge", "kpm"), ("instruction", "ipm")])
def test_corda_splits_off_what_peft_splits_off(mode: str, theirs: str) -> None:
    ours, peft = (nn.Sequential(nn.Linear(12, 9, bias=False)) for _ in range(2))
    peft.load_state_dict(ours.state_dict())
    inputs_TI = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    options = LoraConfig(
        r=3,
        lora_alpha=6,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=theirs),  # type: ignore[arg-type]
        target_modules=["0"],
    )
    preprocess_corda(peft, options, run_model=lambda: peft(inputs_TI))
    layer: Any = get_peft_model(peft, options).base_model.model[0]  # type: ignore[arg-type, index]

    up_OR, down_RI = oriented(ours[0].weight.detach(), inputs_TI, 3, 2.0, mode)
    torch.testing.assert_close(ours[0].weight - 2 * up_OR @ down_RI, layer.base_layer.weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rank", [8, 12])
def test_corda_of_a_weight_of_less_than_full_rank_is_finite(rank: int) -> None:
    weight_OI = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    weight_OI[:6] = 0
    up_OR, down_RI = oriented(weight_OI, torch.randn(50, 30), rank, 1.0, "knowledge")
    assert up_OR.isfinite().all()
    assert down_RI.isfinite().all()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", ["lora", "rora", "dora"])
def test_a_recovery_from_there_learns_resumes_merges_and_loads_in_plain_peft(
    tmp_path: Path, name: str, start: str
) -> None:
    options = {"name": name, "ranks": {"down_proj": 6}, "init_tokens": 200} | STARTS[start]
    settings = config(options, tokens=1000, learning_rate=1e-2, curve_every=10_000)
    output, summary = recovered(tmp_path, settings)
    assert summary["validation"]["final_loss"] < 0.97 * summary["validation"]["initial_loss"]
    assert summary["adapter"]["init"] == settings.adapter.init  # type: ignore[attr-defined]

    again = resumed(tmp_path, settings, stopped_at=2)
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors", "history.jsonl", "recovery.json"):
        assert (output / file).read_bytes() == (again / file).read_bytes(), file

    base = tmp_path / "base" / "model"
    plain = PeftModel.from_pretrained(load_model(base, dtype="float32"), output / "adapter")
    merged = load_model(output / "model", dtype="float32")
    assert (logits(merged) - logits(load_model(base, dtype="float32"))).abs().max() > 0.1
    torch.testing.assert_close(logits(plain), logits(merged), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["lora", "rora", "dora_rs"])
def test_what_corda_saves_is_the_trained_model_at_every_scaling(tmp_path: Path, name: str) -> None:
    model = decoder(vocab_size=VOCABULARY)
    adapted = begun(name, model, init="corda", ranks={"down_proj": 6}, alpha=3.0)
    with seeded(1), torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.05 * torch.randn_like(parameter)
    ADAPTERS[name].save(adapted, tmp_path)  # type: ignore[misc]
    plain = PeftModel.from_pretrained(decoder(vocab_size=VOCABULARY), tmp_path)
    scalings = {layer.r["default"]: layer.scaling["default"] for _, layer in lora_layers(plain)}
    expected = {2 * rank: 3 / (rank if name == "lora" else sqrt(rank)) for rank in (4, 6)}
    assert scalings == pytest.approx(expected)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", ["eva", "instruction"])
def test_masks_stay(tmp_path: Path, start: str) -> None:
    base = masked_base(tmp_path)
    settings = config({"name": "dora"} | STARTS[start], tokens=500, learning_rate=1e-2, curve_every=10_000)
    output, summary = recovered(tmp_path, settings)
    assert summary["validation"]["final_loss"] < 0.97 * summary["validation"]["initial_loss"]
    before, after = (
        {key: tensor for key, tensor in weights(model).items() if "_proj" in key} for model in (base, output / "model")
    )
    assert same_zeros(before, after)


def test_the_rows_that_are_read_are_the_first_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("stages.recover.stage.hidden_states", lambda model, batch: read.append(batch))
    recovered(tmp_path, config({"init": "eva", "init_tokens": 100}, tokens=300))
    recovered(tmp_path, config({"init": "eva", "init_tokens": 200}, tokens=300), name="more")
    recovered(tmp_path, config({"init": "eva", "init_tokens": 5000}, tokens=300), name="all")
    recovered(tmp_path, config(tokens=300), name="none")
    few, more, everything = (batch.input_ids_1T[0].tolist() for batch in read)
    assert 100 <= len(few) < 164 <= 200 <= len(more) < 264
    assert more[: len(few)] == few
    assert 300 <= len(everything) < 364
    assert everything[: len(more)] == more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "pissa"}, r"adapter\.init must be one of random, eva, corda, and is 'pissa'"),
        ({"init": "corda", "corda": "kpm"}, r"adapter\.corda must be one of knowledge, instruction"),
        ({"init": "eva", "init_tokens": 0}, r"adapter\.init_tokens must be at least 1 token"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ADAPTERS["lora_plus"].check(adapter_config("lora_plus", **options))


def test_fewer_tokens_than_ranks_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads \d+ tokens, fewer than the rank 48 of .*Raise adapter\.init_tokens"):
        recovered(tmp_path, config({"init": "eva", "init_tokens": 1, "rank": 48, "targets": ["q_proj"]}))

"""What every adapter promises, and what each of them computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from helpers.decoders import decoder, token_ids
from helpers.masked import masked_base, same_zeros, weights
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import adapter_config, config, data_artifact, model_artifact, recovered
from stages.adapters.low_rank import LowRankConfig, lora_layers
from stages.adapters.registry import ADAPTERS
from stages.adapters.through_peft import PeftAdapterConfig
from stages.common.files import read_jsonl
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.decoders.logits import PLAIN, Logits
from stages.decoders.modeling_pruned import PrunedLlamaConfig, PrunedLlamaForCausalLM
from stages.decoders.packed_attention import use_packed_attention
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.recover.config import RecoverStageConfig
from stages.recover.curve import Curve
from stages.recover.loss import TRAINED_CHUNK, trained_head_cross_entropy
from stages.recover.plan import gives_model
from stages.recover.seeds import seeded
from stages.recover.stage import run
from stages.stage import JSON, Context

IDS = token_ids(vocabulary=VOCABULARY)
SHAPES = [[6, 3, 40], [2, 1, 17], [4, 2, 33]]
EVEN_HEADS = [[6, 3, 40], [6, 3, 17], [6, 3, 33]]
"""For the adapter that keeps keys and values for every layer alike."""
RATES = {"full": 5e-3, "hira": 2e-1, "lora_plus": 5e-3, "prefix": 5e-2}
"""Learning rates at which a few steps teach something, where that is not 2e-2."""
NAMES = sorted(ADAPTERS)
SPLIT_OFF = ("olora", "pissa")
"""Adapters that begin as a part of the weight."""
IN_PEFT = (LowRankConfig, PeftAdapterConfig)
"""Options of the adapters that plain PEFT loads and that are merged."""
OTHERS = ("hira", "miss", "shira")
SAVED = "adapter/adapter_model.safetensors"


class Interrupted(Exception):
    """What ends a recovery in the middle of a step."""


@dataclass(frozen=True)
class Recovery:
    """One recovery of an unevenly pruned decoder, and the same one after an interruption."""

    settings: RecoverStageConfig
    inputs: dict[str, Path]
    output: Path
    resumed: Path
    summary: JSON

    @property
    def base(self) -> Path:
        return self.inputs["model"] / "model"

    def reloaded(self) -> Any:
        """Return what was trained, from what is on disk."""
        adapter = ADAPTERS[self.settings.adapter.name]
        if gives_model(self.settings):
            return load_model(self.output / "model", dtype="float32")
        model = load_model(self.base, dtype="float32")
        adapter.load(model, self.output / "adapter", ())  # type: ignore[misc]
        return model


def pruned_inputs(root: Path, shapes: list[list[int]]) -> dict[str, Path]:
    """Build a decoder whose layers have these heads, key/value heads and MLP channels, and rows to train it on."""
    fields = decoder(vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=True).config.to_dict()
    pruned = PrunedLlamaConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    pruned.layer_shapes = shapes
    with seeded(0):
        model = PrunedLlamaForCausalLM(pruned)
    data = data_artifact(root / "data", choices=False)
    return {"model": model_artifact(root / "base", model), "data": data}


@pytest.fixture(scope="module")
def recovery(tmp_path_factory: pytest.TempPathFactory) -> Any:
    uneven = pruned_inputs(tmp_path_factory.mktemp("uneven"), SHAPES)

    @cache
    def recover(name: str) -> Recovery:
        root = tmp_path_factory.mktemp(name)
        inputs = pruned_inputs(root, EVEN_HEADS) if name == "prefix" else uneven
        settings = config({"name": name}, tokens=1000, learning_rate=RATES.get(name, 2e-2), curve_every=10_000)
        whole, resumed = root / "whole", root / "resumed"
        summary = run(settings, inputs, Context(output=whole, checkpoint_seconds=0))

        def interrupt(point: JSON) -> None:
            if point["step"] == 2:
                raise Interrupted

        with pytest.raises(Interrupted):
            run(settings, inputs, Context(output=resumed, checkpoint_seconds=0, log=interrupt))
        run(settings, inputs, Context(output=resumed, checkpoint_seconds=0))
        return Recovery(settings, inputs, whole, resumed, summary)

    return recover


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


def validation_loss(model: Any, base: Path, data: Path, settings: RecoverStageConfig) -> float:
    use_packed_attention(model)
    rows = list(read_jsonl(data / "validation.jsonl"))
    curve = Curve(model, load_tokenizer(base), rows, config=settings.recover, dtype="float32")
    return float(curve.point()["validation_loss"])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_on_disk_has_learned_and_has_the_validation_loss_that_was_measured(recovery: Any, name: str) -> None:
    done = recovery(name)
    validation = done.summary["validation"]

    assert validation["final_loss"] < 0.97 * validation["initial_loss"]
    found = validation_loss(done.reloaded(), done.base, done.inputs["data"], done.settings)
    assert found == pytest.approx(validation["final_loss"], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_recovery_ends_in_the_same_bytes(recovery: Any, name: str) -> None:
    done = recovery(name)
    files = {
        root: sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
        for root in (done.output, done.resumed)
    }

    assert files[done.output] == files[done.resumed]
    for file in files[done.output]:
        assert (done.output / file).read_bytes() == (done.resumed / file).read_bytes(), file


@pytest.mark.parametrize("name", [name for name in NAMES if gives_model(config({"name": name}))])
def test_the_model_that_comes_out_has_the_bases_names_shapes_and_dtypes(recovery: Any, name: str) -> None:
    done = recovery(name)
    before, after = weights(done.base), weights(done.output / "model")

    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert load_model(done.output / "model", dtype="float32").config.layer_shapes == SHAPES


@pytest.mark.parametrize("name", [n for n in NAMES if issubclass(ADAPTERS[n].config, IN_PEFT)])
def test_plain_peft_on_the_pruned_directory_gives_the_merged_models_logits(recovery: Any, name: str) -> None:
    done = recovery(name)
    base = load_model(done.base, dtype="float32")
    plain = logits(base)
    unmerged = logits(PeftModel.from_pretrained(base, done.output / "adapter"))

    assert (unmerged - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(done.reloaded()), unmerged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["dora", "full", "olora", *OTHERS])
def test_bfloat16_computes_and_what_is_trained_and_stored_stays_float32(tmp_path: Path, name: str) -> None:
    rate = RATES.get(name, 2e-2)
    settings = config({"name": name}, dtype="bfloat16", tokens=500, learning_rate=rate, curve_every=10_000)
    output, summary = recovered(tmp_path, settings)

    assert summary["validation"]["final_loss"] < 0.97 * summary["validation"]["initial_loss"]
    stored = [*output.glob("adapter/*.safetensors"), *output.glob("model/*.safetensors")]
    tensors = [tensor for file in stored for name, tensor in load_file(file).items() if "indices" not in name]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize("name", [*SPLIT_OFF, "full", *OTHERS])
def test_masks_stay_whatever_is_trained(tmp_path: Path, name: str) -> None:
    base = masked_base(tmp_path)
    rate = RATES.get(name, 2e-2)
    settings = config({"name": name}, tokens=500, learning_rate=rate, weight_decay=0.1, curve_every=10_000)
    output, summary = recovered(tmp_path, settings)

    assert summary["validation"]["final_loss"] < 0.97 * summary["validation"]["initial_loss"]
    before, after = (
        {key: tensor for key, tensor in weights(model).items() if "_proj" in key} for model in (base, output / "model")
    )
    assert same_zeros(before, after)
    assert not any(torch.equal(before[key], after[key]) for key in before)
    found = validation_loss(load_model(output / "model", dtype="float32"), base, tmp_path / "data", settings)
    assert found == pytest.approx(summary["validation"]["final_loss"], rel=1e-4)


def attached(name: str, model: Any = None, **options: Any) -> tuple[Any, Any]:
    """Return a tiny decoder with an adapter that has taken a step in a random direction, and the adapter's module."""
    model = model or decoder(vocab_size=VOCABULARY)
    with seeded(0):
        adapted = ADAPTERS[name].attach(model, adapter_config(name, **options), ())
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model, adapted


@pytest.mark.parametrize("name", ["rora", "lora", "dora_rs", "pissa"])
def test_each_layer_has_the_rank_that_its_name_asks_for_and_the_scaling_of_that_rank(tmp_path: Path, name: str) -> None:
    ranks = {"down_proj": 9, "layers.1": 2, "layers.1.q_proj": 3}
    model, adapted = attached(name, ranks=ranks, alpha=6.0)
    layers = {path.removeprefix("model.layers."): layer for path, layer in lora_layers(model)}

    for path, rank in {
        "0.mlp.down_proj": 9,
        "1.self_attn.q_proj": 3,
        "1.mlp.up_proj": 2,
        "0.self_attn.q_proj": 4,
    }.items():
        assert layers[path].lora_A["default"].weight.shape[0] == rank
        expected = 6.0 / rank if name in ("lora", "pissa") else 6.0 / sqrt(rank)
        assert layers[path].scaling["default"] == pytest.approx(expected)

    ADAPTERS[name].save(adapted, tmp_path / "adapter")  # type: ignore[misc]
    plain = PeftModel.from_pretrained(decoder(vocab_size=VOCABULARY), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank": 25},
            r"rank 25 is more than model\.layers\.0\.self_attn\.k_proj .* 24 outputs and 48 inputs,",
        ),
        ({"ranks": {"layers.2.gate_proj": 41}}, r"layers\.2\.mlp\.gate_proj can take: .* its largest rank is 40"),
        ({"ranks": {"down_prj": 8}}, r"'down_prj' is no layer .*, did you mean 'down_proj'\?"),
        ({"ranks": {"layers.7": 8}}, r"'layers\.7' is no layer"),
        (
            {"ranks": {"layers.1": 8, "mlp.up_proj": 2}},
            r"layers\.1=8 and mlp\.up_proj=2 both name model\.layers\.1\.mlp",
        ),
    ],
)
def test_a_rank_that_no_layer_can_have_is_an_error_when_planned_and_when_attached(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        attached("rora", **options)
    shape = DecoderShape.from_config(decoder(vocab_size=VOCABULARY).config.to_dict())
    with pytest.raises(UserError, match=message):
        ADAPTERS["rora"].fits(adapter_config("rora", **options), shape)


def test_ranks_below_one_are_an_error() -> None:
    with pytest.raises(UserError, match=r"adapter\.ranks: q_proj must be at least 1, and is 0"):
        ADAPTERS["dora"].check(adapter_config("dora", ranks={"q_proj": 0}))


def test_rora_trains_exactly_as_lora_with_alpha_times_root_rank(recovery: Any, tmp_path: Path) -> None:
    rora = recovery("rora")
    adapter = rora.settings.adapter
    lora = adapter_config("lora", rank=adapter.rank, alpha=adapter.alpha * sqrt(adapter.rank))
    run(replace(rora.settings, adapter=lora), rora.inputs, Context(output=tmp_path))

    for file in ("history.jsonl", SAVED, "model/model.safetensors"):
        assert (tmp_path / file).read_bytes() == (rora.output / file).read_bytes(), file


def test_lora_plus_gives_b_its_multiple_of_the_learning_rate(tmp_path: Path) -> None:
    one_step = {"tokens": 200, "curve_every": 10_000, "warmup": 0.0}
    plus, fast = (
        load_file(recovered(tmp_path, config(adapter, **one_step, learning_rate=rate), name=adapter["name"])[0] / SAVED)
        for adapter, rate in (({"name": "lora_plus", "ratio": 4.0}, 1e-3), ({"name": "lora"}, 4e-3))
    )

    # At the first step B is zero, so A has no gradient, whatever its rate.
    assert all(torch.equal(plus[name], fast[name]) for name in plus)
    assert all(tensor.any() for name, tensor in plus.items() if "lora_B" in name)


def test_doras_magnitudes_are_norms_in_float32_whatever_the_base_is_stored_in() -> None:
    model = decoder(vocab_size=VOCABULARY).to(torch.bfloat16)
    ADAPTERS["dora"].attach(model, adapter_config("dora"), ())

    for _, layer in lora_layers(model):
        magnitude_O = layer.lora_magnitude_vector["default"].weight
        assert torch.equal(magnitude_O, torch.linalg.vector_norm(layer.base_layer.weight.float(), dim=1))


def test_doras_norm_is_constant_in_the_backward_pass() -> None:
    model, _ = attached("dora")
    layer = model.get_submodule("model.layers.0.mlp.up_proj").train()
    x_TI = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    layer(x_TI).square().sum().backward()
    up_OR, down_RI = (factors["default"].weight for factors in (layer.lora_B, layer.lora_A))
    found = up_OR.grad, down_RI.grad

    summed_OI = layer.base_layer.weight + layer.scaling["default"] * up_OR @ down_RI
    norms_O1 = summed_OI.norm(dim=1, keepdim=True).detach()
    merged_OI = layer.lora_magnitude_vector["default"].weight.unsqueeze(1) * summed_OI / norms_O1
    expected = torch.autograd.grad(linear(x_TI, merged_OI).square().sum(), (up_OR, down_RI))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SPLIT_OFF)
def test_what_is_split_off_is_what_peft_splits_off_and_the_model_starts_as_it_was(name: str) -> None:
    ours, peft = (decoder(vocab_size=VOCABULARY) for _ in range(2))
    before = logits(ours)
    ADAPTERS[name].attach(ours, adapter_config(name, alpha=6.0), ())
    options = LoraConfig(r=4, lora_alpha=6, init_lora_weights=name, target_modules=["q_proj", "down_proj"])
    get_peft_model(peft, options)

    torch.testing.assert_close(logits(ours), before, atol=1e-4, rtol=1e-4)
    layers = dict(lora_layers(ours))
    for path, layer in lora_layers(peft):
        torch.testing.assert_close(layers[path].base_layer.weight, layer.base_layer.weight, atol=1e-5, rtol=1e-5)


def test_pissas_fast_decomposition_is_close_to_the_exact_one_and_follows_the_seed() -> None:
    def rest(seed: int, iterations: int) -> Tensor:
        model = decoder(vocab_size=VOCABULARY)
        with seeded(seed):
            ADAPTERS["pissa"].attach(model, adapter_config("pissa", iterations=iterations), ())
        weight: Tensor = model.get_submodule("model.layers.0.mlp.up_proj").base_layer.weight.detach()
        return weight

    exact, fast = rest(0, 0), rest(0, 4)
    assert torch.equal(fast, rest(0, 4))
    assert not torch.equal(fast, rest(1, 4))
    assert exact.norm() <= fast.norm() <= 1.02 * exact.norm()


@pytest.mark.parametrize(
    ("chosen", "trained", "frozen"),
    [
        ("all", {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}, set()),
        ("decoder", {"model.norm.weight"}, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("projections", {"model.layers.2.mlp.up_proj.weight"}, {"model.norm.weight", "model.embed_tokens.weight"}),
    ],
)
def test_full_fine_tuning_changes_the_weights_that_were_chosen(
    tmp_path: Path, chosen: str, trained: set[str], frozen: set[str]
) -> None:
    untied = decoder(vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=False)
    settings = config({"name": "full", "weights": chosen}, tokens=300, learning_rate=5e-3, curve_every=10_000)
    output, summary = recovered(tmp_path, settings, model=untied)
    before, after = weights(tmp_path / "base" / "model"), weights(output / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}

    assert trained <= changed
    assert not frozen & changed
    assert summary["parameters"]["trainable"] == sum(before[name].numel() for name in changed)
    assert not (output / "adapter").exists()


@pytest.mark.parametrize("logits", [PLAIN, Logits(softcap=5.0), Logits(scaling=3.0)])
def test_a_trained_head_gets_its_gradient_without_all_logits_at_once(logits: Logits) -> None:
    generator = torch.Generator().manual_seed(0)
    count, vocabulary = TRAINED_CHUNK + 30, 11
    hidden_NE = torch.randn(count, 8, generator=generator).requires_grad_()
    head = torch.nn.Linear(8, vocabulary)
    labels_N = torch.randint(vocabulary, (count,), generator=generator)
    parts = (hidden_NE, head.weight, head.bias)
    kept: list[int] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = trained_head_cross_entropy(hidden_NE, head, labels_N, logits)
    found = torch.autograd.grad(loss, parts)

    logits_NV = head(hidden_NE) / logits.scaling
    capped_NV = logits_NV if logits.softcap is None else logits.softcap * torch.tanh(logits_NV / logits.softcap)
    plain = cross_entropy(capped_NV, labels_N, reduction="sum")
    torch.testing.assert_close((loss, *found), (plain, *torch.autograd.grad(plain, parts)))
    assert max(kept) < TRAINED_CHUNK * vocabulary


def test_full_fine_tunings_weights_are_one_of_three() -> None:
    with pytest.raises(UserError, match=r"adapter\.weights must be one of all, decoder, projections"):
        ADAPTERS["full"].check(adapter_config("full", weights="head"))

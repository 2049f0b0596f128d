"""2SSP against a plain loop: norms of what goes into down, and attentions left out one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from helpers.shapes import LLAMA_7B, SMOLLM2
from stages.decoders.anatomy import decoder_layers
from stages.decoders.checkpoint import load_model
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.allocate import plan_shapes
from stages.prune.allocation.budget import TOLERANCE, Budget
from stages.prune.criteria.registry import CRITERIA
from stages.prune.criteria.two_stage import TwoStageConfig, attentions, choose, score
from stages.prune.statistics.gradients import calibration_loss

SMALL, LARGE = DecoderShape.from_config(SMOLLM2), DecoderShape.from_config(LLAMA_7B)
IDS = token_ids(5, 32)


def test_a_channel_scores_the_norm_over_a_sequence_averaged_over_sequences() -> None:
    model, given = decoder("gemma2"), []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].double()))
    with torch.no_grad():
        model(IDS, use_cache=False)
    found = score(model, decoder_layers(model), IDS, TwoStageConfig()).layers[1]
    torch.testing.assert_close(found["channels"], given[0].norm(dim=1).mean(0), rtol=1e-5, atol=0)


def equation_5(layers: int, attention: int, mlp: int, share: float, alpha: float = 1.5) -> int:
    return round(layers * share ** (mlp / attention / alpha))


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.5, 0.6])
def test_attentions_go_by_equation_5_and_channels_alike_make_up_the_remainder(ratio: float) -> None:
    sizes = {30: (576 * (576 + 192) * 2 + 576, 3 * 576 * 1536 + 576), 32: (4 * 4096**2 + 4096, 3 * 4096 * 11008 + 4096)}
    for shape in (SMALL, LARGE):
        count = len(shape.layers)
        attention, mlp = sizes[count]
        plan = plan_shapes(shape, TwoStageConfig(ratio=ratio, round_to=1))
        expected = equation_5(count, attention, mlp, ratio * shape.parameters() / (count * (attention + mlp)))
        assert sum(not layer.heads for layer in plan.pruned.layers) == expected
        assert len({layer.mlp for layer in plan.pruned.layers}) == 1
        assert abs(plan.achieved - ratio) < 0.0005
        assert f"{expected} attentions go" in " ".join(plan.remarks) or not expected


def test_attentions_are_fewer_than_the_budget_holds_and_more_where_channels_are_too_few() -> None:
    many = TwoStageConfig(ratio=0.1, alpha=100.0)
    assert attentions(Budget(SMALL, 0.1), many) > 15
    plan = plan_shapes(SMALL, many)
    assert sum(not layer.heads for layer in plan.pruned.layers) == 15
    assert abs(plan.achieved - 0.1) <= TOLERANCE
    few = TwoStageConfig(ratio=0.7, alpha=0.1)
    assert attentions(Budget(SMALL, 0.7), few) < 10
    assert abs(plan_shapes(SMALL, few).achieved - 0.7) <= TOLERANCE


def test_named_layers_alone_are_cut() -> None:
    plan = plan_shapes(SMALL, TwoStageConfig(ratio=0.3, layers="10-29"))
    assert plan.pruned.layers[:10] == SMALL.layers[:10]
    assert abs(plan.achieved - 0.3) <= TOLERANCE
    plan = plan_shapes(SMALL, TwoStageConfig(ratio=0.3, granularity=["channels"]))
    assert plan.pruned.uniform
    assert plan.pruned.layers[0].heads == 9


def loss(model: PreTrainedModel) -> float:
    with torch.no_grad():
        return float(model(IDS[:2], labels=IDS[:2], use_cache=False).loss)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "qwen2"])
def test_the_attention_that_leaves_next_is_the_one_the_model_without_the_channels_misses_least(family: str) -> None:
    config = TwoStageConfig(ratio=0.45, attention_sequences=2, allocation="paper")
    model = decoder(family, num_hidden_layers=5)
    shape = DecoderShape.from_config(model.config.to_dict())
    scores = score(model, decoder_layers(model), IDS, config)
    before = model(IDS).logits
    plan, kept, found = choose(model, scores, IDS, config, Budget(shape, 0.45), shape)
    assert torch.equal(model(IDS).logits, before), "the model is left as it was"
    steps = found["second_stage"]
    assert len(steps) == sum(not layer.heads for layer in plan.pruned.layers) >= 2

    plain = decoder(family, num_hidden_layers=5)
    for layer, keep in zip(plain.model.layers, kept.layers, strict=True):
        gone = sorted(set(range(40)) - set(keep.mlp))
        assert gone
        with torch.no_grad():
            layer.mlp.down_proj.weight[:, gone] = 0.0
    for step in steps:
        losses = {}
        for index, layer in enumerate(plain.model.layers):
            o = layer.self_attn.o_proj.weight
            if o.any():
                kept_o = o.detach().clone()
                torch.nn.init.zeros_(o)
                losses[index] = loss(plain)
                o.data = kept_o
        assert step["layer"] == min(losses, key=lambda index: losses[index])
        assert step["loss"] == pytest.approx(losses[step["layer"]], rel=1e-5)
        torch.nn.init.zeros_(plain.model.layers[step["layer"]].self_attn.o_proj.weight)


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"compensate": "least_squares"}, {"budget": "macs"}], ids=str)
def test_the_saved_model_is_the_one_that_was_chosen(options: dict[str, object], tmp_path: Path) -> None:
    config = TwoStageConfig(ratio=0.4, attention_sequences=3, calibration_ids=IDS.tolist(), **options)  # type: ignore[arg-type]
    summary, record = prune(config, saved(decoder(num_hidden_layers=6), tmp_path / "dense"), tmp_path / "pruned")
    silent = [index for index, keep in enumerate(record["layers"]) if not keep["heads"]]
    assert {step["layer"] for step in record["second_stage"]} <= set(silent)
    assert len(silent) == len(record["second_stage"]) or "steps" in options
    assert len({len(keep["mlp"]) for keep in record["layers"]}) == 1
    if not options:
        assert silent == sorted(step["layer"] for step in record["second_stage"]) != []
        model = load_model(tmp_path / "pruned" / "model", dtype="float32")
        assert calibration_loss(model, IDS[:3]) == pytest.approx(record["second_stage"][-1]["loss"], rel=1e-5)
        assert abs(summary["ratio_achieved"] - 0.4) <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "prune.alpha"),
        ({"attention_sequences": 0}, "prune.attention_sequences"),
        ({"granularity": ["attention"]}, "Leave channels in it"),
        ({"allocation": "global"}, "use prune.allocation=paper, or rank channels alone"),
        ({"scope": "layer"}, "use prune.allocation=paper, or rank channels alone"),
    ],
)
def test_what_2ssp_cannot_do_is_one_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        CRITERIA["2ssp"].check(TwoStageConfig(**options))  # type: ignore[arg-type]

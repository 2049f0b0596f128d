"""LLM-Pruner's criterion against the scores and selections that its own code gave, and against its definition.

The golden files are a multi-head llama with 10 × 64 calibration ids, scored and pruned by LLM-Pruner's code in float32
with torch 2.13. Tolerance: 1e-4 relative plus 1e-5 of the layer's mean; selections exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from stages.anatomy import decoder_layers
from stages.checkpoint import load_model
from stages.errors import UserError
from stages.prune.allocation.allocate import plan_shapes
from stages.prune.criteria.llmpruner import MERGES, TAYLOR, LLMPrunerConfig, check, expanded, score
from stages.prune.groups import select
from stages.prune.statistics.slices import merged_slices
from stages.shapes import DecoderShape
from tests.decoders import decoder, token_ids

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "llmpruner"
SELECTIONS: dict[str, Any] = json.loads((GOLDEN / "selections.json").read_text())
LAYERS = slice(1, 5)


@pytest.fixture(scope="module")
def golden_model() -> PreTrainedModel:
    return load_model(GOLDEN, dtype="float32")


@pytest.fixture(scope="module")
def golden_ids() -> torch.Tensor:
    return torch.tensor(json.loads((GOLDEN / "calibration_ids.json").read_text()))


def options(name: str) -> LLMPrunerConfig:
    entry = SELECTIONS[name]
    return LLMPrunerConfig(
        taylor=entry["taylor"], reduction=entry["reduction"], channel_ratio=entry["ratio"], layers="1-4"
    )


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_golden_groups_are_kept(name: str, golden_model: PreTrainedModel, golden_ids: torch.Tensor) -> None:
    config = options(name)
    plan = plan_shapes(DecoderShape.from_config(golden_model.config.to_dict()), config)
    layers = decoder_layers(golden_model)[LAYERS]
    scores = score(golden_model, layers, golden_ids, config).layers
    for layer in layers:
        kept = select(scores[layer.index], plan.pruned.layers[layer.index], layer.shape)
        expected = SELECTIONS[name]["kept"][str(layer.index)]
        assert kept.heads == kept.kv_heads == expected["heads"]
        assert kept.mlp == expected["mlp"]
    assert plan.parameters_after == SELECTIONS[name]["params_after"]


@pytest.mark.parametrize("name", [name for name in SELECTIONS if name.endswith("0.25")])
def test_the_golden_scores_are_reached(name: str, golden_model: PreTrainedModel, golden_ids: torch.Tensor) -> None:
    golden = load_file(GOLDEN / "scores.safetensors")
    layers, config = decoder_layers(golden_model)[LAYERS], options(name)
    found = expanded(golden_model, layers, golden_ids, config.granularity, [config.taylor])[config.taylor].layers
    for layer in layers:
        rows = merged_slices(layer, found[layer.index], MERGES[config.reduction])
        for kind, module in (("heads", "self_attn.q_proj"), ("channels", "mlp.gate_proj")):
            expected = golden[f"{name.removesuffix('-0.25')}/model.layers.{layer.index}.{module}"].double()
            torch.testing.assert_close(rows[kind], expected, rtol=1e-4, atol=1e-5 * float(expected.mean()))


def saliences(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return |w·g| of every parameter, by autograd."""
    model(ids, labels=ids).loss.backward()
    return {name: (w * w.grad).abs().detach().double() for name, w in model.named_parameters() if w.grad is not None}


def test_heads_queries_channels_and_sub_layers_are_sums_over_their_weights() -> None:
    model, ids = decoder(), token_ids()
    found = score(model, decoder_layers(model), ids, LLMPrunerConfig()).layers
    salience = saliences(model, ids)
    for index, scores in found.items():
        q, k, v, o = (salience[f"model.layers.{index}.self_attn.{name}_proj.weight"] for name in "qkvo")
        gate, up, down = (salience[f"model.layers.{index}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        queries = torch.stack([q[8 * i : 8 * i + 8].sum() + o[:, 8 * i : 8 * i + 8].sum() for i in range(6)])
        keys = torch.stack([k[8 * i : 8 * i + 8].sum() + v[8 * i : 8 * i + 8].sum() for i in range(3)])
        heads, channels = keys + queries[0::2] + queries[1::2], gate.sum(1) + up.sum(1) + down.sum(0)
        expected = {"heads": heads, "queries": queries, "channels": channels}
        expected |= {"attention": heads.sum().view(1), "mlp": channels.sum().view(1)}
        for kind, values in expected.items():
            torch.testing.assert_close(scores[kind], values, rtol=1e-5, atol=0)
        torch.testing.assert_close(scores["layers"], scores["attention"] + scores["mlp"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reduction", MERGES)
def test_a_hidden_channel_is_scored_in_every_matrix_and_norm_and_a_tied_head_once(reduction: str, tied: bool) -> None:
    model, ids = decoder(num_hidden_layers=2, tie_word_embeddings=tied), token_ids()
    config = LLMPrunerConfig(granularity=["hidden"], reduction=reduction)
    scores = score(model, decoder_layers(model), ids, config)
    sides = []
    for name, values in saliences(model, ids).items():
        rows = name.endswith(("o_proj.weight", "down_proj.weight"))
        sides.append(values if values.dim() == 1 else values.sum(1 if rows else 0))
    stacked = torch.stack(sides)
    assert len(sides) == 2 * 9 + 2 + (not tied)
    expected = {
        "sum": stacked.sum(0),
        "mean": stacked.mean(0),
        "max": stacked.amax(0),
        "prod": stacked.prod(0) ** (1 / len(sides)),
        "first": sides[0],
    }[reduction]
    assert scores.hidden_H is not None
    # Both take float32 gradients, by products of other shapes. A norm's is one sum a channel, which may nearly cancel,
    # and its relative error is then large: 1.03e-4 of the merged score with ATEN_CPU_CAPABILITY=default.
    torch.testing.assert_close(scores.hidden_H, expected, rtol=5e-4, atol=0)
    assert not scores.layers


@pytest.mark.parametrize("taylor", TAYLOR)
def test_scoring_leaves_no_gradient_and_the_model_as_it_was(taylor: str) -> None:
    model = decoder()
    model.model.norm.weight.requires_grad_(False)
    score(model, decoder_layers(model)[1:2], token_ids(), LLMPrunerConfig(taylor=taylor))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def test_a_layers_scores_do_not_depend_on_which_others_are_scored() -> None:
    model, ids = decoder(), token_ids()
    layers = decoder_layers(model)
    every = score(model, layers, ids, LLMPrunerConfig()).layers[1]
    alone = score(model, layers[1:2], ids, LLMPrunerConfig()).layers[1]
    assert all(torch.equal(every[kind], alone[kind]) for kind in every)


@pytest.mark.parametrize("reduction", MERGES)
def test_bfloat16_scores_are_near_those_of_float32(reduction: str) -> None:
    ids, config = token_ids(), LLMPrunerConfig(reduction=reduction)
    exact, rounded = decoder(), decoder().bfloat16()
    one, other = (score(model, decoder_layers(model), ids, config).layers for model in (exact, rounded))
    for index, scores in one.items():
        assert torch.corrcoef(torch.stack([scores["channels"], other[index]["channels"]]))[0, 1] > 0.99


def test_a_misspelt_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"prune\.taylor 'param_frist', did you mean 'param_first'"):
        check(LLMPrunerConfig(taylor="param_frist"))
    with pytest.raises(UserError, match=r"prune\.reduction 'men', did you mean 'mean'"):
        check(LLMPrunerConfig(reduction="men"))

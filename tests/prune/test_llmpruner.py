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
from stages.prune.budget import plan_shapes
from stages.prune.criteria.llmpruner import REDUCTIONS, TAYLOR, LLMPrunerConfig, check, row_scores, score
from stages.prune.groups import select
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
    for layer, scores in zip(layers, score(golden_model, layers, golden_ids, config), strict=True):
        kept = select(scores, plan.pruned.layers[layer.index], layer.shape)
        expected = SELECTIONS[name]["kept"][str(layer.index)]
        assert kept.heads == kept.kv_heads == expected["heads"]
        assert kept.mlp == expected["mlp"]
    assert plan.parameters_after == SELECTIONS[name]["params_after"]


@pytest.mark.parametrize("name", [name for name in SELECTIONS if name.endswith("0.25")])
def test_the_golden_scores_are_reached(name: str, golden_model: PreTrainedModel, golden_ids: torch.Tensor) -> None:
    golden = load_file(GOLDEN / "scores.safetensors")
    layers = decoder_layers(golden_model)[LAYERS]
    prefix = name.removesuffix("-0.25")
    for layer, rows in zip(layers, row_scores(golden_model, layers, golden_ids, options(name)), strict=True):
        for module, found in zip(("self_attn.q_proj", "mlp.gate_proj"), rows, strict=True):
            expected = golden[f"{prefix}/model.layers.{layer.index}.{module}"].double()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.mean()))


def test_with_grouped_queries_the_adjacent_heads_of_a_group_are_summed() -> None:
    model, ids = decoder(), token_ids()
    layers = decoder_layers(model)
    found = score(model, layers, ids, LLMPrunerConfig())
    model(ids, labels=ids).loss.backward()
    for layer, scores in zip(layers, found, strict=True):
        salience = {p.name: (p.linear.weight * p.linear.weight.grad).abs().double() for p in layer.projections}
        for group in range(3):
            rows, queries = slice(8 * group, 8 * group + 8), slice(16 * group, 16 * group + 16)
            expected = salience["q_proj"][queries].sum() + salience["o_proj"][:, queries].sum()
            expected += salience["k_proj"][rows].sum() + salience["v_proj"][rows].sum()
            torch.testing.assert_close(scores.heads_K[group], expected.detach(), rtol=1e-6, atol=0)
        mlp_C = salience["gate_proj"].sum(1) + salience["up_proj"].sum(1) + salience["down_proj"].sum(0)
        torch.testing.assert_close(scores.mlp_C, mlp_C.detach(), rtol=1e-6, atol=0)


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
    every = score(model, layers, ids, LLMPrunerConfig())
    alone = score(model, layers[1:2], ids, LLMPrunerConfig())
    assert torch.equal(every[1].heads_K, alone[0].heads_K)
    assert torch.equal(every[1].mlp_C, alone[0].mlp_C)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bfloat16_scores_are_near_those_of_float32(reduction: str) -> None:
    ids, config = token_ids(), LLMPrunerConfig(reduction=reduction)
    exact, rounded = decoder(), decoder().bfloat16()
    pairs = zip(
        score(exact, decoder_layers(exact), ids, config),
        score(rounded, decoder_layers(rounded), ids, config),
        strict=True,
    )
    for one, other in pairs:
        assert torch.corrcoef(torch.stack([one.mlp_C, other.mlp_C]))[0, 1] > 0.99


def test_a_misspelt_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"prune\.taylor 'param_frist', did you mean 'param_first'"):
        check(LLMPrunerConfig(taylor="param_frist"))
    with pytest.raises(UserError, match=r"prune\.reduction 'men', did you mean 'mean'"):
        check(LLMPrunerConfig(reduction="men"))

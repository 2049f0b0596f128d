"""What every criterion promises, and the two that read no text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.anatomy import decoder_layers
from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.criteria import CRITERIA
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.criteria.random import RandomConfig
from tests.decoders import decoder, token_ids


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_scores_every_group_of_the_given_layers_and_no_other(name: str) -> None:
    model, criterion = decoder(), CRITERIA[name]
    layers = decoder_layers(model)[1:]
    scores = criterion.score(model, layers, token_ids() if criterion.reads_text else None, criterion.config())
    assert [(len(s.heads_K), len(s.mlp_C)) for s in scores] == [(3, 40), (3, 40)]
    assert all(s.heads_K.dtype == s.mlp_C.dtype == torch.float64 for s in scores)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterions_options_are_a_prune_config_that_names_it(name: str) -> None:
    config = CRITERIA[name].config()
    assert isinstance(config, PruneConfig)
    assert config.method == name


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_weights_of_a_group(norm: str, order: int) -> None:
    model = decoder()
    layers = decoder_layers(model)
    for layer, scores in zip(
        layers, CRITERIA["magnitude"].score(model, layers, None, MagnitudeConfig(norm=norm)), strict=True
    ):
        q, k, v, o = (projection.linear.weight.detach().double() for projection in layer.attention)
        gate, up, down = (projection.linear.weight.detach().double() for projection in layer.mlp)
        group = torch.cat([q[16:32].flatten(), k[8:16].flatten(), v[8:16].flatten(), o[:, 16:32].flatten()])
        assert float(scores.heads_K[1]) == pytest.approx(float(group.norm(order)), rel=1e-6)
        assert float(scores.mlp_C[7]) == pytest.approx(
            float(torch.cat([gate[7], up[7], down[:, 7]]).norm(order)), rel=1e-6
        )


def test_random_draws_depend_on_seed_and_layer_alone() -> None:
    model = decoder()
    layers = decoder_layers(model)
    every = CRITERIA["random"].score(model, layers, None, RandomConfig(seed=3))
    alone = CRITERIA["random"].score(model, layers[2:], None, RandomConfig(seed=3))
    other = CRITERIA["random"].score(model, layers, None, RandomConfig(seed=4))
    assert torch.equal(every[2].mlp_C, alone[0].mlp_C)
    assert not torch.equal(every[2].mlp_C, every[1].mlp_C)
    assert not torch.equal(every[2].mlp_C, other[2].mlp_C)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"prune\.norm 'l3'"):
        CRITERIA["magnitude"].check(MagnitudeConfig(norm="l3"))


def test_a_plan_reads_options_shapes_and_budget_without_torch() -> None:
    code = "import sys, stages.prune.criteria, stages.prune.budget; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0

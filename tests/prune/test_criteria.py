"""What every criterion promises, over all criteria and families, and the two that read no text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from helpers.decoders import KINDS, decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.criteria.random import RandomConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Kept, Scores, Selection, check_finite
from stages.prune.memory.resident import Resident, always
from stages.prune.surgery import cut

SIZES = {"heads": 3, "queries": 6, "channels": 40, "attention": 1, "mlp": 1, "layers": 1}


def scored(name: str, model: PreTrainedModel, layers: slice = slice(None), resident: Resident = always) -> Scores:
    """Return the scores of everything that criterion `name` can score."""
    criterion = CRITERIA[name]
    config = criterion.config(granularity=list(criterion.granularities))
    ids = token_ids() if criterion.reads_text else None
    return criterion.score(model, decoder_layers(model)[layers], ids, config, resident)


def offered(name: str) -> set[str]:
    """Return the kinds of group that criterion `name` has scores for."""
    own = CRITERIA[name].own
    return set(CRITERIA[name].granularities) - set(() if own is None else own.kinds)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_scores_every_kind_of_group_that_it_offers_in_every_family(name: str, family: str) -> None:
    scores = scored(name, decoder(family), slice(1, None))
    assert list(scores.layers) == [1, 2]
    asked = offered(name) - {"hidden"}
    for found in scores.layers.values():
        assert asked <= set(found)
        assert {kind: len(values) for kind, values in found.items()} == {kind: SIZES[kind] for kind in found}
        assert all(values.dtype == torch.float64 and values.isfinite().all() for values in found.values())
    if "hidden" in CRITERIA[name].granularities:
        assert scores.hidden_H is not None
        assert scores.hidden_H.shape == (48,)
        assert scores.hidden_H.dtype == torch.float64
    else:
        assert scores.hidden_H is None


@pytest.mark.parametrize("name", CRITERIA)
def test_a_model_that_was_cut_is_scored_by_what_it_still_has(name: str) -> None:
    kept = [Kept([], [], [1, 2, 3]), Kept([0, 2], [0, 1], []), Kept([], [], []), Kept([0, 1], [0], list(range(9)))]
    model = decoder(num_hidden_layers=5)
    cut(model, Selection([*kept, None], hidden=list(range(0, 48, 2))))
    scores = scored(name, model)
    sizes = [
        {"channels": 3, "mlp": 1, "layers": 1},
        {"heads": 2, "queries": 2, "attention": 1, "layers": 1},
        {"layers": 1},
        {"heads": 1, "queries": 2, "channels": 9, "attention": 1, "mlp": 1, "layers": 1},
    ]
    asked = offered(name)
    for index, size in enumerate(sizes):
        found = {kind: len(values) for kind, values in scores.layers[index].items()}
        assert {kind: count for kind, count in found.items() if kind in asked} == {
            kind: count for kind, count in size.items() if kind in asked
        }
    assert scores.hidden_H is None or len(scores.hidden_H) == 24
    check_finite(scores, name)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_leaves_the_model_as_it_was(name: str) -> None:
    model = decoder("phi3")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model(token_ids()).logits
    scored(name, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(token_ids()).logits, logits)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", CRITERIA)
def test_the_same_seed_and_text_give_the_same_scores(name: str) -> None:
    one, other = scored(name, decoder()), scored(name, decoder())
    for index, kinds in one.layers.items():
        assert all(torch.equal(values, other.layers[index][kind]) for kind, values in kinds.items())


class OneAtATime:
    """Spoils the weights of every layer but the one that is held; raises where two are asked for at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = model.get_decoder().layers
        self.weights = [[p.detach().clone() for p in layer.parameters()] for layer in self.layers]
        self.held: list[int] = []
        for layer in self.layers:
            self.fill(layer.parameters(), None)

    @contextmanager
    def __call__(self, index: int) -> Iterator[None]:
        assert set(self.held) <= {index}
        self.held.append(index)
        self.fill(self.layers[index].parameters(), self.weights[index])
        try:
            yield
        finally:
            self.held.pop()
            if not self.held:
                self.fill(self.layers[index].parameters(), None)

    @torch.no_grad()
    def fill(self, parameters: Iterator[torch.nn.Parameter], values: list[torch.Tensor] | None) -> None:
        for position, parameter in enumerate(parameters):
            parameter.copy_(torch.full_like(parameter, torch.nan) if values is None else values[position])


@pytest.mark.parametrize("name", [name for name, criterion in CRITERIA.items() if not criterion.needs_gradients])
def test_without_gradients_one_layer_in_memory_at_a_time_is_enough(name: str) -> None:
    expected, model = scored(name, decoder("gemma2")), decoder("gemma2")
    found = scored(name, model, resident=OneAtATime(model))
    for index, kinds in expected.layers.items():
        assert all(torch.equal(values, found.layers[index][kind]) for kind, values in kinds.items())
    assert expected.hidden_H is None or torch.equal(expected.hidden_H, found.hidden_H)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterions_options_are_a_prune_config_that_names_it_and_asks_for_what_it_scores(name: str) -> None:
    config = CRITERIA[name].config()
    assert isinstance(config, PruneConfig)
    assert config.method == name
    assert config.allocation == "paper"
    assert CRITERIA[name].paper in ("uniform", "equal", "global", "depth", "own")
    assert (CRITERIA[name].own is not None) == (CRITERIA[name].paper == "own")
    CRITERIA[name].check(config)


def test_a_kind_of_group_that_does_not_exist_or_can_not_be_scored_is_refused() -> None:
    with pytest.raises(UserError, match=r"prune\.granularity 'head', did you mean 'heads'"):
        CRITERIA["random"].check(RandomConfig(granularity=["head"]))
    with pytest.raises(UserError, match=r"flap can't score hidden.*heads, queries, channels; other.*llmpruner"):
        CRITERIA["flap"].check(CRITERIA["flap"].config(granularity=["channels", "hidden"]))


def test_scores_that_are_not_finite_are_refused_with_the_first_layer_named() -> None:
    model = decoder()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = torch.inf
    with pytest.raises(UserError, match=r"prune=wanda: the scores of layer 1 are not finite \(2 such"):
        check_finite(scored("wanda", model), "wanda")
    with pytest.raises(UserError, match="the hidden channels"):
        check_finite(Scores({}, torch.tensor([1.0, torch.nan])), "magnitude")


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_weights_of_a_group(norm: str, order: int) -> None:
    model = decoder()
    config = MagnitudeConfig(norm=norm, granularity=["heads", "queries", "channels", "layers", "hidden"])
    scores = CRITERIA["magnitude"].score(model, decoder_layers(model), None, config, always)
    parameters = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for index, found in scores.layers.items():
        q, k, v, o = (parameters[f"model.layers.{index}.self_attn.{name}_proj.weight"] for name in "qkvo")
        gate, up, down = (parameters[f"model.layers.{index}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        groups = {
            ("heads", 1): [q[16:32], k[8:16], v[8:16], o[:, 16:32]],
            ("queries", 3): [q[24:32], o[:, 24:32]],
            ("channels", 7): [gate[7], up[7], down[:, 7]],
            ("layers", 0): [q, k, v, o, gate, up, down],
        }
        for (kind, group), weights in groups.items():
            expected = torch.cat([weight.flatten() for weight in weights]).norm(order)
            assert float(found[kind][group]) == pytest.approx(float(expected), rel=1e-6)
    rows = ("o_proj.weight", "down_proj.weight")
    hidden = [w[5].flatten() if w.dim() == 1 or name.endswith(rows) else w[:, 5] for name, w in parameters.items()]
    assert scores.hidden_H is not None
    assert float(scores.hidden_H[5]) == pytest.approx(float(torch.cat(hidden).norm(order)), rel=1e-6)


def test_random_draws_depend_on_seed_and_layer_alone() -> None:
    model = decoder()
    layers = decoder_layers(model)
    every = CRITERIA["random"].score(model, layers, None, RandomConfig(seed=3), always).layers
    alone = CRITERIA["random"].score(model, layers[2:], None, RandomConfig(seed=3), always).layers
    other = CRITERIA["random"].score(model, layers, None, RandomConfig(seed=4), always).layers
    assert all(torch.equal(every[2][kind], alone[2][kind]) for kind in SIZES)
    assert not any(torch.equal(every[2][kind], every[1][kind]) for kind in SIZES)
    assert not any(torch.equal(every[2][kind], other[2][kind]) for kind in SIZES)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"prune\.norm 'l3'"):
        CRITERIA["magnitude"].check(MagnitudeConfig(norm="l3"))


def test_a_plan_reads_options_shapes_and_budget_without_torch() -> None:
    code = "import sys, stages.prune.criteria, stages.prune.allocation.uniform; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0

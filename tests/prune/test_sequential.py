"""Sequential compensation: each map is the ridge optimum of what the cut model gives it; the cut model is nearer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from stages.decoders.anatomy import LayerAnatomy, decoder_layers
from stages.decoders.checkpoint import load_model
from stages.prune.compensation import compensate
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.groups import Kept, Selection, keep_all
from stages.prune.sequential import CORRECTION, FLOOR, correctable
from stages.prune.statistics.ridge import DAMPING
from stages.prune.surgery import cut, head_rows

ALL = Kept(list(range(6)), [0, 1, 2], list(range(40)))
GROUPS = Selection(
    [ALL, Kept([0, 1, 4, 5], [0, 2], list(range(5, 40, 2))), Kept([0, 2, 4], [0, 1, 2], list(range(30)))]
)
"""Heads and channels of two layers go; the first layer stays as it is."""
SUBLAYERS = Selection([Kept([], [], list(range(3, 40))), Kept([0, 2, 4], [0, 1, 2], []), ALL])
"""An attention and an MLP go whole, with some of their neighbours' groups."""
LAYERS = Selection([Kept([2, 3], [1], list(range(40))), None, Kept(list(range(6)), [0, 1, 2], list(range(0, 40, 3)))])
"""A layer goes whole, and groups of the layers around it."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "granite": {},
}
"""Families that add outputs to the residual stream as they are, with options: biases, head norms, fused maps, and a
factor before outputs are added."""
IDS = token_ids(sequences=8, length=32)


def compensated(
    family: str, selection: Selection, how: str, *, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return the family's decoder compensated for a cut, before it and after it."""
    models = []
    for _ in range(2):
        model = decoder(family, **FAMILIES.get(family, {}))
        if how != "none":
            compensate(model, selection, IDS, how, dtype=dtype)
        models.append(model)
    cut(models[1], selection)
    return models[0], models[1]


def passing(model: PreTrainedModel, modules: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what each module is given and gives, [tokens, …] in float64, when the model reads the calibration text."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name, module in modules.items():

        def keep(_: Any, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            found[name] = (given[0].detach().flatten(0, 1).double(), output.detach().flatten(0, 1).double())

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    return found


def sublayers(layer: LayerAnatomy) -> dict[str, nn.Module]:
    """Return the modules at which the fits of a layer can be seen: norms in front of sub-layers, and all maps."""
    module: Any = layer.module
    maps = {projection.name: projection.linear for projection in layer.projections}
    norms: dict[str, nn.Module] = {}
    if layer.attention:
        norms["attention"] = module.input_layernorm
    if layer.mlp:
        norms["mlp"] = module.post_attention_layernorm
    return norms | maps


def ridge_optimum(inputs: Tensor, wanted: Tensor, prior_RC: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of weighted least squares, drawn to `prior_RC`, solved without forming products."""
    roots = weights.sqrt()[:, None]
    pull = (DAMPING * (roots * inputs).square().sum(0).mean()).sqrt()
    rows = torch.cat([roots * inputs, pull * torch.eye(inputs.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(rows, torch.cat([roots * wanted, pull * prior_RC.T])).solution.T


@pytest.mark.parametrize("selection", [GROUPS, SUBLAYERS, LAYERS], ids=["groups", "sublayers", "layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_is_the_ridge_optimum_of_what_the_cut_model_gives_it(family: str, selection: Selection) -> None:
    _, model = compensated(family, selection, "sequential")
    _, plain = compensated(family, selection, "none")
    dense = decoder(family, **FAMILIES[family])
    scale = getattr(model.config, "residual_multiplier", 1.0)
    stay = [index for index, keep in enumerate(selection.layers) if keep]
    fitted = 0
    for index, layer, before in zip(stay, decoder_layers(model), decoder_layers(plain), strict=True):
        own = passing(model, sublayers(layer))
        whole = passing(dense, sublayers(decoder_layers(dense)[index]))
        for part, old, name in ((layer.attention, before.attention, "attention"), (layer.mlp, before.mlp, "mlp")):
            for projection, prior in zip(part, old, strict=True):
                prior_RC = prior.weight.detach().double()
                stream, cut_stream = whole[name][0], own[name][0]
                given, gave = whole[projection.name]
                if projection is part[-1]:
                    bias = 0.0 if projection.linear.bias is None else projection.linear.bias.detach().double()
                    wanted = gave - bias + CORRECTION / scale * (stream - cut_stream)
                    squares = stream.square().mean(-1)
                    weights = 1 / (squares + FLOOR * squares.median())
                else:  # where both streams are the same, so is the optimum
                    wanted, weights = given @ prior_RC.T, torch.ones(len(given), dtype=torch.float64)
                best = ridge_optimum(own[projection.name][0], wanted, prior_RC, weights)
                torch.testing.assert_close(projection.weight.detach().double(), best, rtol=2e-3, atol=5e-4)
                fitted += not torch.equal(projection.weight, prior.weight)
    assert fitted >= 5


@pytest.mark.parametrize("selection", [GROUPS, SUBLAYERS, LAYERS], ids=["groups", "sublayers", "layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_is_nearer_to_the_dense_one_than_with_least_squares(family: str, selection: Selection) -> None:
    def last(model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model.get_decoder()(IDS).last_hidden_state  # type: ignore[no-any-return]

    goal = last(decoder(family, **FAMILIES[family]))
    found = [
        (last(compensated(family, selection, how)[1]) - goal).square().mean()
        for how in ("sequential", "least_squares", "none")
    ]
    assert found == sorted(found)
    assert found[0] < 0.9 * found[1]


def test_nothing_changes_where_nothing_is_cut() -> None:
    model, dense = decoder(), decoder()
    compensate(model, Selection([keep_all(layer.shape) for layer in decoder_layers(model)]), IDS, "sequential")
    assert all(torch.equal(value, dense.get_parameter(name)) for name, value in model.named_parameters())


def test_layers_before_the_first_cut_and_places_that_go_keep_their_values() -> None:
    model, _ = compensated("llama", GROUPS, "sequential")
    dense = decoder("llama", **FAMILIES["llama"])
    assert all(
        torch.equal(value, dense.get_parameter(name)) for name, value in model.named_parameters() if "s.0." in name
    )
    changed = 0
    for layer, old in zip(decoder_layers(model)[1:], decoder_layers(dense)[1:], strict=True):
        keep = GROUPS.layers[layer.index]
        assert keep
        for projection, before in zip(layer.projections, old.projections, strict=True):
            stays = torch.tensor(keep.mlp)
            if projection in layer.attention:
                stays = head_rows(keep.heads if projection.per_query_head else keep.kv_heads, layer)
            goes = torch.ones(projection.weight.shape[projection.axis], dtype=torch.bool)
            goes[stays] = False
            where = goes.nonzero()[:, 0]
            found, expected = (p.weight.index_select(p.axis, where) for p in (projection, before))
            assert torch.equal(found, expected), projection.name
            changed += not torch.equal(projection.weight, before.weight)
    assert changed >= 10, "and the places that stay are fitted"


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_a_family_that_norms_its_outputs_is_fitted_as_by_least_squares(family: str) -> None:
    assert not correctable(decoder(family))
    found, expected = (compensated(family, GROUPS, how)[1].state_dict() for how in ("sequential", "least_squares"))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_passes_in_bfloat16_give_nearly_the_same_weights() -> None:
    (_, exact), (_, nearly) = (compensated("llama", GROUPS, "sequential", dtype=d) for d in ("float32", "bfloat16"))
    _, plain = compensated("llama", GROUPS, "none")
    differs = False
    for name, value in exact.named_parameters():
        moved = (value - plain.get_parameter(name)).norm()
        apart = (value - nearly.get_parameter(name)).norm()
        assert apart <= 0.25 * moved + 1e-6, name
        differs = differs or bool(apart > 0)
    assert differs, "the passes are in bfloat16"


@pytest.mark.parametrize(
    ("granularity", "ratio"),
    [(["heads", "channels"], 0.3), (["attention"], 0.1), (["mlp"], 0.2), (["layers"], 0.2)],
    ids=["groups", "attention", "mlp", "layers"],
)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_layers_on_disk_give_the_model_that_layers_in_memory_give(
    family: str, granularity: list[str], ratio: float, tmp_path: Path
) -> None:
    source = saved(decoder(family), tmp_path / "dense")
    states = []
    for offload in ("none", "layer"):
        config = MagnitudeConfig(
            ratio=ratio,
            granularity=granularity,
            allocation="global",
            compensate="sequential",
            offload=offload,
            calibration_ids=IDS.tolist(),
        )
        prune(config, source, tmp_path / offload)
        states.append(load_model(tmp_path / offload / "model", dtype="float32").state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5)

"""Making up for what is cut without training: the fit is the ridge optimum, the bias keeps the mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from stages.decoders.anatomy import decoder_layers
from stages.decoders.checkpoint import count_parameters, load_model
from stages.errors import UserError
from stages.prune.compensation import compensate, fitted_layers, kept_inputs
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.groups import Kept, Selection, keep_all
from stages.prune.statistics.activations import outputs
from stages.prune.statistics.gradients import calibration_loss
from stages.prune.statistics.ridge import DAMPING
from stages.prune.surgery import cut

ALL = Kept(list(range(6)), [0, 1, 2], list(range(40)))
SELECTION = Selection([ALL, Kept([0, 1, 4, 5], [0, 2], list(range(5, 40, 2))), Kept([0, 2, 4], [0, 1, 2], [])])


def seen(model: Any, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return what `linear` is given and what it gives, [tokens, …], when the model reads the calibration text."""
    found: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend((inputs[0].flatten(0, 1), output.flatten(0, 1)))

    handle = linear.register_forward_hook(keep)
    with torch.no_grad():
        model(token_ids())
    handle.remove()
    return found[0], found[1]


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "granite"])
def test_columns_that_stay_are_the_ridge_optimum_and_nothing_else_changes(family: str) -> None:
    model, dense = decoder(family), decoder(family)
    compensate(model, SELECTION, token_ids(), "least_squares")
    adjusted = set()
    for layer, old in zip(decoder_layers(model), decoder_layers(dense), strict=True):
        for output, before in zip(outputs(layer), outputs(old), strict=True):
            stays = kept_inputs(layer, SELECTION.layers[layer.index], output)
            inputs, given = (value.double() for value in seen(dense, before.linear))
            if not 0 < len(stays) < inputs.shape[1]:
                continue
            adjusted.add(f"model.layers.{layer.index}.{output.name}")
            ridge = (DAMPING * inputs.square().sum(0).mean()).sqrt()
            rows = torch.cat([inputs[:, stays], ridge * torch.eye(len(stays))])
            goal = torch.cat([given, ridge * before.weight[:, stays].T.double()])
            best = torch.linalg.lstsq(rows, goal).solution.T
            torch.testing.assert_close(output.weight[:, stays].double(), best, rtol=1e-3, atol=1e-4)
            fitted, cut_off = (
                (inputs[:, stays] @ projection.weight[:, stays].T.detach().double() - given).square().sum()
                for projection in (output, before)
            )
            assert fitted < 0.9 * cut_off, "nearer to what it gave"
    assert len(adjusted) == 3
    for name, parameter in model.named_parameters():
        if not any(name.startswith(key.rpartition(".")[0]) and key.rpartition(".")[2] in name for key in adjusted):
            assert torch.equal(parameter, dense.get_parameter(name)), name


@pytest.mark.parametrize("how", ["bias", "least_squares"])
def test_what_makes_up_for_a_cut_is_the_same_wherever_in_memory_the_weights_lie(how: str) -> None:
    found = []
    for offset in range(16):
        model = decoder()
        for parameter in model.parameters():
            parameter.data = moved(parameter.detach(), offset)
        compensate(model, SELECTION, token_ids(), how)
        found.append(model.state_dict())
    assert all(torch.equal(tensor, found[0][name]) for state in found for name, tensor in state.items())


def moved(tensor: Tensor, offset: int) -> Tensor:
    """Return a copy that begins so many elements after an address that 64 divides; where torch allocates, it does."""
    room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    assert room.data_ptr() % 64 == 0
    return room[offset:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize(
    "keep", [Kept([0, 1, 4, 5], [0, 2], list(range(40))), Kept(list(range(6)), [0, 1, 2], list(range(0, 40, 3)))]
)
def test_with_its_bias_a_projections_mean_output_stays(keep: Kept) -> None:
    model, dense = decoder(), decoder()
    selection = Selection([ALL, keep, ALL])
    compensate(model, selection, token_ids(), "bias")
    cut(model, selection)
    for output, before in zip(outputs(decoder_layers(model)[1]), outputs(decoder_layers(dense)[1]), strict=True):
        if output.weight.shape != before.weight.shape:
            _, found = seen(model, output.linear)
            _, expected = seen(dense, before.linear)
            torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize("how", ["bias", "least_squares"])
def test_a_compensated_model_is_saved_and_reloaded(how: str, tmp_path: Path) -> None:
    config = MagnitudeConfig(ratio=0.3, compensate=how, calibration_ids=token_ids().tolist())
    source = saved(decoder(), tmp_path / "dense")
    _, record = prune(config, source, tmp_path / "pruned")
    model = load_model(tmp_path / "pruned" / "model", dtype="float32")
    assert count_parameters(model) == record["parameters"]["pruned"]
    assert calibration_loss(model, token_ids()) == pytest.approx(record["calibration"]["loss"]["pruned"], rel=1e-6)
    _, plain = prune(MagnitudeConfig(ratio=0.3), source, tmp_path / "plain")
    assert record["layers"] == plain["layers"], "what stays is the criterion's choice alone"
    with torch.no_grad():
        without = load_model(tmp_path / "plain" / "model", dtype="float32")
        goal, *found = (m(token_ids()).logits for m in (decoder(), model, without))
    assert (found[0] - goal).square().mean() < (found[1] - goal).square().mean()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("gemma3_text", {}),
        ("phi3", {}),
        ("granite", {}),
    ],
)
@pytest.mark.parametrize("how", ["none", "least_squares"])
def test_a_cut_is_tried_out_in_place_as_it_will_be(how: str, family: str, options: dict[str, Any]) -> None:
    selection = Selection([Kept([], [], list(range(3, 40))), SELECTION.layers[1], None])
    model = decoder(family, **options)
    fitted = [values for _, _, values in fitted_layers(model, [selection], token_ids(), how)]
    with torch.no_grad():
        for parameter, value in (pair for values in fitted for pair in values.items()):
            parameter.copy_(value)
    tried = calibration_loss(model, token_ids())
    model = decoder(family, **options)
    if how != "none":
        compensate(model, selection, token_ids(), how)
    cut(model, selection)
    assert calibration_loss(model, token_ids()) == pytest.approx(tried, rel=1e-5)


def test_nothing_changes_where_nothing_goes_and_an_unknown_way_is_refused() -> None:
    model, dense = decoder(), decoder()
    everything = Selection([keep_all(layer.shape) for layer in decoder_layers(model)])
    compensate(model, everything, token_ids(), "least_squares")
    same: Callable[[str, Tensor], bool] = lambda name, value: torch.equal(value, dense.get_parameter(name))  # noqa: E731
    assert all(same(name, value) for name, value in model.named_parameters())
    with pytest.raises(UserError, match="did you mean 'least_squares'"):
        compensate(model, everything, token_ids(), "least_square")

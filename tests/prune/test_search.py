"""`prune.allocation=searched`: what is chosen has the lowest measured loss, and that is the saved model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from stages.decoders.anatomy import decoder_layers
from stages.decoders.checkpoint import load_model
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.budget import Budget
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.allocation.search import Trial, _tried, searched
from stages.prune.compensation import fitted_layers
from stages.prune.config import Search
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Kept, Scores, Selection, keep_all
from stages.prune.statistics.gradients import calibration_loss

IDS = token_ids(6)
BLOCKS = ["heads", "queries", "channels", "attention", "mlp"]
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "best": ("llama", {"granularity": BLOCKS, "compensate": "least_squares"}),
    "phi3": ("phi3", {"granularity": BLOCKS, "compensate": "least_squares"}),
    "gemma2": ("gemma2", {"granularity": ["heads", "channels"]}),
    "attention": ("qwen2", {"granularity": ["attention"], "compensate": "least_squares", "ratio": 0.2}),
    "layers": ("llama", {"granularity": ["layers", "channels"]}),
    "wanda": ("qwen3", {"method": "wanda", "granularity": BLOCKS}),
    "magnitude": ("llama", {"method": "magnitude", "granularity": ["queries", "channels"], "budget": "macs"}),
    "block_influence": ("llama", {"method": "block_influence", "granularity": ["attention", "mlp"]}),
    "alike": ("llama", {"search": Search(trials=9, sequences=4), "shapes": "alike", "granularity": BLOCKS}),
    "ziplm": ("llama", {"method": "ziplm", "granularity": BLOCKS, "compensate": "least_squares"}),
}


def configured(options: dict[str, Any]) -> Any:
    common = {"method": "surgeon", "ratio": 0.3, "allocation": "searched", "calibration_ids": IDS.tolist()}
    common |= {"search": Search(trials=3, sequences=4)}
    return CRITERIA[options.get("method", "surgeon")].config(**common | options)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_chosen_trial_has_the_lowest_loss_and_it_is_that_of_the_saved_model(setting: str, tmp_path: Path) -> None:
    family, options = SETTINGS[setting]
    config = configured(options)
    summary, record = prune(config, saved(decoder(family), tmp_path / "dense"), tmp_path / "pruned")
    assert 1 <= len(record["search"]) <= config.search.trials
    losses = [trial["loss"] for trial in record["search"]]
    model = load_model(tmp_path / "pruned" / "model", dtype="float32")
    assert calibration_loss(model, IDS[:4]) == pytest.approx(min(losses), rel=1e-5)
    assert [trial["predicted"] for trial in record["search"]] == sorted(t["predicted"] for t in record["search"])
    assert all(trial["predicted"] > 0 for trial in record["search"])
    if config.budget == "parameters":
        near = abs(summary["ratio_achieved"] - config.ratio) <= 0.005
        assert near or any("between two steps" in remark for remark in record["remarks"])


def test_a_search_for_shapes_alike_gives_the_stock_architecture_and_tries_every_shape(tmp_path: Path) -> None:
    _, record = prune(configured(SETTINGS["alike"][1]), saved(decoder(), tmp_path / "dense"), tmp_path / "pruned")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned" / "model")
    assert type(model).__module__.startswith("transformers.models.")
    assert len({trial["allocation"] for trial in record["search"]}) == len(record["search"]) > 1


def test_two_searches_write_the_same_bytes(tmp_path: Path) -> None:
    model = saved(decoder(), tmp_path / "dense")
    records = [prune(configured(SETTINGS["best"][1]), model, tmp_path / name)[1] for name in ("one", "two")]
    assert records[0] == records[1]
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("shapes", ["free", "alike"])
def test_two_steps_meet_the_whole_budget_and_are_fitted_to_the_dense_model(shapes: str, tmp_path: Path) -> None:
    model = saved(decoder(num_hidden_layers=4), tmp_path / "dense")
    options = {"granularity": BLOCKS, "compensate": "sequential", "shapes": shapes, "ratio": 0.5}
    losses = {}
    for steps in (1, 2):
        summary, record = prune(configured(options | {"steps": steps}), model, tmp_path / f"{steps} steps")
        near = abs(summary["ratio_achieved"] - 0.5) <= 0.005
        assert near or any("between two steps" in remark for remark in record["remarks"])
        assert summary["ratio_requested"] == 0.5
        losses[steps] = record["calibration"]["loss"]
        made = load_model(tmp_path / f"{steps} steps" / "model", dtype="float32")
        assert made.num_parameters() == record["parameters"]["pruned"]
        assert calibration_loss(made, IDS) == pytest.approx(losses[steps]["pruned"], rel=1e-5)
    assert losses[1]["dense"] == losses[2]["dense"]


@pytest.mark.parametrize("how", ["none", "least_squares"])
def test_trials_side_by_side_have_the_losses_of_trials_one_after_the_other(how: str) -> None:
    model = decoder("gemma2", num_hidden_layers=4)
    shapes = [layer.shape for layer in decoder_layers(model)]
    cuts = [
        Selection([Kept([], [], list(range(3, 40))), None, *map(keep_all, shapes[2:])]),
        Selection([keep_all(shapes[0]), Kept([0, 1, 4, 5], [0, 2], []), keep_all(shapes[2]), None]),
    ]
    plan = PrunePlan(dense=DecoderShape.from_config(model.config.to_dict()), layers=(), hidden=48, requested=None)
    config, before = configured({"compensate": how, "search": Search(sequences=2)}), model.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    tried = _tried(model, [Trial(plan, "", cut, 0.0) for cut in cuts], IDS, config)
    for cut, trial in zip(cuts, tried, strict=True):
        alone = decoder("gemma2", num_hidden_layers=4)
        fitted = [values for _, _, values in fitted_layers(alone, [cut], IDS[2:], how)]
        for parameter, value in (pair for values in fitted for pair in values.items()):
            parameter.data = value
        assert trial.loss == calibration_loss(alone, IDS[:2])
    assert tried[0].loss != tried[1].loss
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def chosen(granularity: list[str], losses: list[tuple[float, float]], ratio: float) -> tuple[list[str], float]:
    """Return what goes where attention and MLP of each layer cost these losses, and the loss predicted for it."""
    # 48 channels have the parameters of the attention.
    model = decoder(intermediate_size=48, num_hidden_layers=len(losses))
    shape = DecoderShape.from_config(model.config.to_dict())
    pairs = (torch.tensor(pair, dtype=torch.float64) for pair in losses)
    scores = Scores({index: {"attention": pair[:1], "mlp": pair[1:]} for index, pair in enumerate(pairs)})
    config = configured({"granularity": granularity, "search": Search(trials=1, sequences=2)})
    plan, _, trials = searched(model, scores, IDS, config, Budget(shape, ratio), shape, cumulative=True)
    gone = []
    for index, layer in enumerate(plan.layers):
        if layer is None:
            gone.append(f"layer {index}")
            continue
        gone += [f"attention {index}"] if not layer.heads else []
        gone += [f"mlp {index}"] if not layer.mlp else []
    return gone, trials[0]["predicted"]


@pytest.mark.parametrize(
    ("mlp", "goes", "predicted"), [(1.0, "mlp 1", 1.0), (1.4, "mlp 1", 1.4), (1.6, "attention 1", 1.5)]
)
def test_a_loss_of_attention_counts_one_and_a_half_times(mlp: float, goes: str, predicted: float) -> None:
    losses = [(9.0, 9.0), (1.0, mlp), (9.0, 9.0)]
    assert chosen(["attention", "mlp"], losses, 0.14) == ([goes], pytest.approx(predicted))


def test_a_whole_layer_counts_the_weighed_losses_of_its_attention_and_its_mlp() -> None:
    # Without weights the first layer would cost 1.6 and the second 1.7.
    assert chosen(["layers"], [(1.0, 0.6), (0.5, 1.2), (9.0, 9.0)], 0.28) == (["layer 1"], pytest.approx(1.95))

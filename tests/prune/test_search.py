"""`prune.allocation=searched`: what is chosen has the lowest measured loss, and that is the saved model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from stages.decoders.checkpoint import load_model
from stages.prune.config import Search
from stages.prune.criteria.registry import CRITERIA
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

"""What models weigh and how fast they run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from stages.errors import UserError
from stages.evaluate.config import CostConfig
from stages.evaluate.cost import ONE_BY_ONE, measure, run
from stages.files import read_json
from stages.stage import JSON, Context
from tests.decoders import decoder, saved

CONFIG = CostConfig(prompt_tokens=8, new_tokens=2, repeats=3)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    masked = decoder(num_hidden_layers=2)
    with torch.no_grad():
        masked.model.layers[0].mlp.up_proj.weight[:10] = 0
    return {
        # 77 MB, which a process's peak must show
        "dense": saved(decoder(vocab_size=400_000, tie_word_embeddings=True), directory / "dense"),
        "pruned": saved(masked, directory / "pruned"),
    }


@pytest.fixture(scope="module")
def cost(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> JSON:
    output = tmp_path_factory.mktemp("cost")
    run(CONFIG, inputs, Context(output=output))
    found: JSON = read_json(output / "cost.json")
    return found


def test_sizes_are_counted(cost: JSON, inputs: dict[str, Path]) -> None:
    for name, entry in cost["models"].items():
        file = inputs[name] / "model" / "model.safetensors"
        assert entry["bytes"] == file.stat().st_size
        assert 4 * entry["parameters"] == pytest.approx(entry["bytes"], rel=0.1)
    pruned = cost["models"]["pruned"]
    assert pruned["parameters"] - pruned["nonzeros"] >= 10 * 48
    assert pruned["multiply_accumulates"] < cost["models"]["dense"]["multiply_accumulates"]


def test_latency_is_a_median_within_its_range(cost: JSON) -> None:
    for entry in cost["models"].values():
        for name in ("prefill_seconds", "decode_seconds"):
            low, high = entry[f"{name}_range"]
            assert 0 < low <= entry[name] <= high
    assert cost["threads"] >= 1
    assert cost["hardware"]["device"]


def test_each_model_has_the_peak_memory_of_its_own_process(cost: JSON) -> None:
    dense, pruned = (cost["models"][name] for name in ("dense", "pruned"))
    if dense["peak_memory_bytes"] is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert dense["libraries_bytes"] == pytest.approx(pruned["libraries_bytes"], rel=0.05)
    extra = dense["peak_memory_bytes"] - pruned["peak_memory_bytes"]
    assert 0.8 * dense["bytes"] < extra < 3 * dense["bytes"]


def test_models_that_do_not_fit_together_are_timed_alone(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {name: artifact / "model" for name, artifact in inputs.items()}
    assert measure(models, CONFIG, "cpu")[1] == ""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    measured, note = measure(models, CONFIG, "cpu")
    assert note == ONE_BY_ONE
    assert measured.keys() == models.keys()


def test_a_model_that_can_not_be_run_is_one_error(tmp_path: Path) -> None:
    broken = saved(decoder(), tmp_path / "broken")
    (broken / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="measuring peak memory failed"):
        run(CONFIG, {"pruned": broken}, Context(output=tmp_path))
    assert not (tmp_path / "cost.json").exists()


def test_nothing_to_measure_is_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.cost\.repeats is 0"):
        run(CostConfig(repeats=0), inputs, Context(output=tmp_path))

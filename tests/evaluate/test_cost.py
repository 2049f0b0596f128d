"""What models weigh and how fast they run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from helpers.decoders import decoder, saved
from helpers.pruned_models import pruned
from stages.adapters.loading import Source
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.evaluate.config import CostConfig
from stages.evaluate.cost import ONE_BY_ONE, _in_turns, measure, run
from stages.evaluate.rounding import rounded
from stages.evaluate.timing import timed_passes
from stages.stage import JSON, Context

CONFIG = CostConfig(prompt_tokens=8, new_tokens=2, repeats=3, batch_sizes=[1, 4])


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


def test_latency_is_a_median_within_its_range_at_each_batch_size(cost: JSON) -> None:
    for entry in cost["models"].values():
        assert [latency["batch"] for latency in entry["latency"]] == [1, 4]
        for latency in entry["latency"]:
            for name in ("prefill_seconds", "decode_seconds"):
                low, high = latency[f"{name}_range"]
                assert 0 < low <= latency[name] <= high
            assert latency["tokens_per_second"] == pytest.approx(latency["batch"] / latency["decode_seconds"])
    assert cost["threads"] >= 1
    assert cost["hardware"]["device"]


def test_a_smaller_model_takes_a_smaller_share_of_the_dense_ones_time(cost: JSON) -> None:
    dense, pruned = (cost["models"][name]["latency"] for name in ("dense", "pruned"))
    for latency in pruned:
        # 400,000 columns of logits against 96: no noise of a busy machine hides that.
        low, high = latency["decode_ratio_range"]
        assert 0 < low <= latency["decode_ratio"] <= high < 1
        assert 0 < latency["prefill_ratio_range"][0] <= latency["prefill_ratio"] <= latency["prefill_ratio_range"][1]
    assert {latency["decode_ratio"] for latency in dense} == {None}


def test_a_model_with_rounded_widths_takes_turns_where_the_pruned_one_has_others(cost: JSON) -> None:
    assert [latency["batch"] for latency in cost["rounded"]["latency"]] == [1, 4]
    assert all(0 < latency["decode_ratio"] < 1 for latency in cost["rounded"]["latency"])
    assert cost["rounded"]["parameters"] > cost["models"]["pruned"]["parameters"]
    assert "rounded" not in cost["models"]


@pytest.mark.parametrize(("kind", "widths"), [("dense", [128] * 3), ("differing", [64] * 3), ("mlp", [64, 64, 0])])
def test_widths_are_rounded_to_the_nearest_multiple_and_nothing_else_changes(
    kind: str, widths: list[int], tmp_path: Path
) -> None:
    model = load_model(pruned(tmp_path, "llama", kind, intermediate_size=100), dtype="float32")
    beside = rounded(model)
    assert beside is not None
    found, before = (DecoderShape.from_config(one.config.to_dict()) for one in (beside, model))
    assert [layer.mlp for layer in found.layers] == widths
    assert [layer.heads for layer in found.layers] == [layer.heads for layer in before.layers]
    assert beside(torch.tensor([[1, 2]])).logits.shape == model(torch.tensor([[1, 2]])).logits.shape
    assert rounded(beside) is None


def test_models_take_turns_pass_by_pass_and_another_begins_each_time(inputs: dict[str, Path]) -> None:
    passes: list[tuple[str, int, int]] = []
    models = {name: load_model(path / "model", dtype="float32") for name, path in inputs.items()}
    for name, model in models.items():
        model.register_forward_pre_hook(
            lambda _module, _args, kwargs, name=name: passes.append((name, *kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
    times = _in_turns(models, CONFIG, 4, [1, 2], int)
    assert {name: len(turns) for name, turns in times.items()} == {"dense": 1, "pruned": 1}
    warming = [("dense", 4, 8), ("pruned", 4, 8), ("dense", 4, 1), ("pruned", 4, 1)]
    assert passes == warming + [("pruned", 4, 8), ("dense", 4, 8)] + 2 * [("pruned", 4, 1), ("dense", 4, 1)]


class OnACard:
    """A model on a GPU that is not there, which notes whether cuDNN may serve its attention."""

    device = torch.device("cuda")
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=7))

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def __call__(self, **options: Any) -> SimpleNamespace:
        self.seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return SimpleNamespace(logits=torch.zeros(1, 1, 7), past_key_values=None)


def test_no_pass_waits_for_a_plan_of_cudnn_though_each_has_a_new_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    model: Any = OnACard()
    for _ in timed_passes(model, prompt_tokens=4, new_tokens=2):
        # Between two passes another model may run, as it would by itself.
        assert torch.backends.cuda.cudnn_sdp_enabled()
    assert model.seen == [False] * 3


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
    models = {name: Source.of(artifact) for name, artifact in inputs.items()}
    assert measure(models, CONFIG, "cpu")[1] == ""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    measured, note = measure(models, CONFIG, "cpu")
    assert note == ONE_BY_ONE
    assert measured.keys() == models.keys()
    latencies = [latency for entry in measured.values() for latency in entry["latency"]]
    assert [latency["batch"] for latency in latencies] == [1, 4, 1, 4]
    assert {latency["prefill_ratio"] for latency in latencies} == {None}


def test_a_model_that_can_not_be_run_is_one_error(tmp_path: Path) -> None:
    broken = saved(decoder(), tmp_path / "broken")
    (broken / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="measuring peak memory failed"):
        run(CONFIG, {"pruned": broken}, Context(output=tmp_path))
    assert not (tmp_path / "cost.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, r"evaluate\.cost\.repeats must be at least 1, and is 0"),
        ({"batch_sizes": []}, r"evaluate\.cost\.batch_sizes must be .*, and is \[\]"),
        ({"batch_sizes": [8, 0]}, r"and is \[8, 0\]"),
        ({"batch_sizes": [1, 8, 1]}, r"each once, and is \[1, 8, 1\]"),
    ],
)
def test_options_out_of_range_are_an_error(
    options: JSON, message: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(CostConfig(**options), inputs, Context(output=tmp_path))

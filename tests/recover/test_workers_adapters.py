"""Every adapter on several processes: the curve and the adapter of one process, however the model is shared."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from helpers.decoders import decoder
from helpers.recoveries import share, train_each
from helpers.toy import config, data_artifact, model_artifact
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_jsonl
from stages.decoders.checkpoint import count_parameters
from stages.recover.config import RecoverStageConfig
from stages.recover.launch import launched
from stages.recover.objectives.distillation import DistillationConfig
from stages.recover.workers import SINGLE
from stages.stage import Context

SHORT: dict[str, Any] = {"tokens": 256, "batch_tokens": 128, "micro_batch_tokens": 64, "validation_tokens": 100}
Alone = Callable[[str], Path]
TELLING = ("full", "prefix", "corda", "cached")
"""The trainings that share most of what is special: weights that are trained themselves, parameters of another kind, a
start from a pass of the model, and a teacher."""
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 1e-3},
    "prefix": {"learning_rate": 1e-2},
}
"""What an adapter is trained with besides, where the rate of the others is too high for it."""


def trainings() -> dict[str, RecoverStageConfig]:
    """Return a short training for each adapter, and some with a teacher, which has to be shared too."""
    configs = {name: config({"name": name}, **SHORT | OPTIONS.get(name, {})) for name in ADAPTERS if name != "none"}
    distilled = SHORT | {"objective": "distillation"}
    for init in ("eva", "corda"):
        configs[init] = config({"name": "lora", "init": init, "init_tokens": 64}, **SHORT)
    configs["distilled"] = config({"name": "lora"}, **distilled)
    cached = DistillationConfig(teacher_top_k=8, cache_teacher=True)
    configs["cached"] = config({"name": "lora"}, distillation=cached, **distilled)
    return configs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    model = model_artifact(root / "base")
    return {"model": model, "data": data_artifact(root / "data"), "teacher": model}


@pytest.fixture(scope="module")
def alone(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Return the directory of one process's training, by the training's name."""
    output = tmp_path_factory.mktemp("alone")

    @cache
    def trained(name: str) -> Path:
        train_each({name: trainings()[name]}, inputs, Context(output=output, cache=output / "cache"), SINGLE)
        return output / name

    return trained


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_as_one(engine: str, inputs: dict[str, Path], alone: Alone, tmp_path: Path) -> None:
    assert_trained_as_by_one(TELLING, engine, 2, inputs, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_several_processes_train_every_adapter_as_one(
    engine: str, workers: int, inputs: dict[str, Path], alone: Alone, tmp_path: Path
) -> None:
    assert_trained_as_by_one(list(trainings()), engine, workers, inputs, alone, tmp_path)


def assert_trained_as_by_one(
    names: Collection[str], engine: str, workers: int, inputs: dict[str, Path], alone: Alone, output: Path
) -> None:
    """Train on several processes, and compare curves and what was trained, but for rounding."""
    context = Context(output=output, cache=output / "cache", engine=engine, workers=workers)
    launched(train_each, {name: trainings()[name] for name in names}, inputs, context)
    for name in names:
        curves = [list(read_jsonl(trained / "history.jsonl")) for trained in (output / name, alone(name))]
        assert len(curves[0]) == len(curves[1]) > 2
        for ours, theirs in zip(*curves, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4), name
        files = [load_file(next(trained.glob("*/*model.safetensors"))) for trained in (output / name, alone(name))]
        # AdamW divides by the size of a gradient. Where that is nearly zero, its rounding moves a weight by up to a
        # hundredth of the rate (2e-2, and 16 times that for B of LoRA+).
        assert_close(*files, rtol=1e-3, atol=2e-4, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_worker_never_holds_more_than_its_share_and_a_layer(stored: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 252, "intermediate_size": 2048, "num_hidden_layers": 12}
    model = decoder(**sizes)
    layer, whole = (4 * count_parameters(module) for module in (model.model.layers[0], model))
    model_artifact(tmp_path / "base", model.to(getattr(torch, stored)))
    context = Context(output=tmp_path, cache=tmp_path / "cache", engine="fsdp", workers=2)
    found = launched(share, None, {"model": tmp_path / "base"}, context)["workers"]
    assert len(found) == 2
    for worker in found:
        # A layer that is gathered is there three times: sent, received and as weights. Libraries grow a little too.
        assert worker["most"] < whole / 2 + 3 * layer + 6 * 2**20 < whole
        assert whole / 2 * 0.9 < worker["kept"] < worker["most"]
    assert not list((tmp_path / "cache").glob("*"))

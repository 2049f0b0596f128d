"""The devices and processes of a run, as the command line asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.planning.runtime import check_runtime, resolve_cards
from pipeline.schema.config import RuntimeConfig
from stages.errors import UserError


@pytest.mark.parametrize(
    ("device_map", "device", "visible", "cards"),
    [
        ("auto", "cuda", "0,1,2", ("cuda:0", "cuda:1", "cuda:2")),
        ("auto", "cuda", "5", ()),
        ("auto", "cpu", "0,1", ()),
        (None, "cuda", "0,1", ()),
    ],
)
def test_layers_are_spread_only_where_it_is_asked_for_and_there_are_several_gpus(
    device_map: str | None, device: str, visible: str, cards: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resolve_cards(device_map, device) == cards


def test_another_device_map_is_an_error() -> None:
    with pytest.raises(UserError, match=r"runtime\.device_map must be null or auto"):
        check_runtime(RuntimeConfig(device_map="balanced"))


def test_a_plan_for_a_gpu_says_that_it_cannot_run_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "this plan can't run here" in str(pipeline.plan("runtime=cuda"))
    assert "can't run here" not in str(pipeline.plan("runtime=cpu"))


def test_a_run_for_a_gpu_ends_in_one_error_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, and this process has found it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    store = tmp_path / "artifacts"
    with pytest.raises(UserError, match=r"torch finds no CUDA GPU.*runtime=cpu"):
        pipeline.run("runtime=cuda", f"runtime.artifact_root={store}", directory=tmp_path / "out")
    assert not store.exists()

"""RoRA, LoRA and DoRA on the embedded model with 30 % removed and its real rows: train, stop, resume, merge, reload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from benchmarks.material import built
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_jsonl
from stages.decoders.checkpoint import load_model
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.stage import run
from stages.stage import JSON, Context

pytestmark = pytest.mark.real
ARTIFACT = ("adapter/adapter_model.safetensors", "model/model.safetensors", "history.jsonl")


class Stopped(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def inputs(real_store: Path) -> dict[str, Path]:
    overrides = [
        "prune=llmpruner",
        "prune.allocation=uniform",
        "data=commonsense",
        "ratio=0.3",
        "tracker=none",
        f"runtime.artifact_root={real_store}",
    ]
    paths = built(overrides, ["prune", "data"]).paths
    return {"model": paths["prune"], "data": paths["data"]}


def recover(
    inputs: dict[str, Path], adapter: str, output: Path, *, stop_after: int | None = None, tokens: int = 900
) -> None:
    """Run three steps; or be stopped after so many."""

    def log(point: JSON) -> None:
        if point["step"] == stop_after:
            raise Stopped

    settings = RecoverConfig(
        tokens=tokens, batch_tokens=tokens // 3, loss="all", curve_every=tokens, validation_tokens=200, test_tokens=0
    )
    config = RecoverStageConfig(
        adapter=ADAPTERS[adapter].config(name=adapter), recover=settings, dtype="float32", seed=0
    )
    output.mkdir(exist_ok=True)
    run(config, inputs, Context(output=output, checkpoint_seconds=0, log=log))


@pytest.mark.parametrize("adapter", ["rora", "lora", "dora"])
def test_it_learns_resumes_to_the_same_bytes_and_reloads_merged_or_in_plain_peft(
    inputs: dict[str, Path], adapter: str, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    recover(inputs, adapter, whole)
    with pytest.raises(Stopped):
        recover(inputs, adapter, stopped, stop_after=2)
    recover(inputs, adapter, stopped)
    for name in ARTIFACT:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name

    losses = [point["validation_loss"] for point in read_jsonl(whole / "history.jsonl") if "validation_loss" in point]
    assert losses[-1] < losses[0] - 0.5

    ids = torch.arange(100, 148)[None]
    with torch.no_grad():
        merged = load_model(whole / "model", dtype="float32")(ids).logits
        pruned = load_model(inputs["model"] / "model", dtype="float32")
        before = pruned(ids).logits
        attached = PeftModel.from_pretrained(pruned, str(whole / "adapter")).eval()(ids).logits
    assert (before - attached).abs().max() > 1
    torch.testing.assert_close(merged, attached, atol=5e-3, rtol=0)


def test_two_recoveries_of_two_threads_end_in_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("one", "other"):
            # Of batches as large as the default's, in which many documents share a beginning.
            recover(inputs, "rora", tmp_path / name, tokens=3072)
    finally:
        torch.set_num_threads(threads)
    for name in ARTIFACT:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name

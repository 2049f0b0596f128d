"""The benchmark of recovery, on a tiny model: what it says, never how fast anything is."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import pytest

from benchmarks.recover import main
from benchmarks.training import Task, stage_config, useful_operations
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import data_artifact, model_artifact
from stages.decoders.checkpoint import load_model


def test_operations_are_those_of_the_matrices_that_tokens_meet(tmp_path: Path) -> None:
    model, data = model_artifact(tmp_path / "base"), data_artifact(tmp_path / "data")
    task = Task(
        model=model, data=data, adapter="lora", rank=4, loss="all", dtype="float32", device="cpu",
        tokens=300, batch_tokens=64, threads=1,
    )  # fmt: skip
    plain = load_model(model / "model", dtype="float32")
    head = plain.get_output_embeddings().weight.numel()
    linear = sum(p.numel() for name, p in plain.named_parameters() if name.endswith("proj.weight"))
    found = useful_operations(task)
    assert 4 * linear + 3.5 * head < found < 1.5 * (4 * linear + 4 * head)


def test_the_recovery_that_is_timed_scores_next_to_nothing() -> None:
    task = Task(
        model=Path(), data=Path(), adapter="dora", rank=4, loss="all", dtype="float32", device="cpu",
        tokens=300, batch_tokens=64, threads=1,
    )  # fmt: skip
    config = stage_config(task)
    assert config.recover.validation_tokens == 1
    assert config.recover.curve_every == task.tokens


@pytest.mark.real
def test_the_last_line_has_the_ratios_and_both_ways_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, root = model_artifact(tmp_path / "base") / "model", tmp_path / "artifacts"
    main(
        [
            "--threads=1", "--rounds=1", "--tokens=32768", "--rank=4", "--batch-tokens=512",
            "model=local", f"model.path={model}", f"runtime.artifact_root={root}",
        ]
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = result["tokens_per_second"]
    assert result["tokens_per_second_ratio"] == pytest.approx(rates["ours"] / rates["stock"])
    assert result["dora_step_ratio"] == pytest.approx(rates["ours, lora"] / rates["ours, dora"])
    assert result["matmul_fraction"] > 0
    assert all(loss < log(VOCABULARY) for loss in result["losses"].values())

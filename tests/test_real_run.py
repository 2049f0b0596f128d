"""The whole graph on the real model and the real rows, by the command of the README; minutes, and a network index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.engine.store import Store


@pytest.mark.real
@pytest.mark.timeout(1500)
def test_the_smoke_experiment_recovers_smollm2_and_says_how_much(tmp_path: Path, real_store: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "experiment=smoke", "hydra.run.dir=run"]
    command.append(f"runtime.artifact_root={real_store}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["params"]["dense"] == 134_515_008
    assert abs(report["params"]["ratio_achieved"] - 0.2) <= 0.005
    perplexity = report["perplexity"]
    assert perplexity["dense"] < perplexity["recovered"]
    assert perplexity["dense"] < perplexity["pruned"]
    assert report["curve"][-1]["validation_loss"] < report["curve"][0]["validation_loss"]
    assert (tmp_path / "wandb").is_dir(), "W&B records offline by default"

    recovered = next((real_store / "recover").glob("*/model"))
    assert json.loads((recovered / "config.json").read_text())["model_type"] == "pruned_llama"
    assert all(artifact.path.is_dir() for artifact in Store(real_store).artifacts())

    started = time.perf_counter()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert again.returncode == 0
    assert "build " not in again.stderr
    assert time.perf_counter() - started < 30, "a cached run reads manifests; seconds, on any machine"

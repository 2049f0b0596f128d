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

SMALL = (
    "data.parts.sampled.rows=8",
    "+data.parts.sampled.new_tokens=64",
    "prune.calibration.data=null",
    "prune.calibration.sequences=12",
    "prune.calibration.length=64",
    "prune.calibration.curvature=8",
    "prune.search.sequences=4",
    "recover.tokens=3000",
    "recover.curve_every=3000",
    "recover.validation_tokens=768",
    "recover.test_tokens=0",
    "evaluate.tasks=[piqa,arc_easy]",
    "evaluate.limit=8",
    "evaluate.passages=4",
    "evaluate.generation_prompts=2",
    "evaluate.generation_tokens=8",
    "evaluate.cost.repeats=1",
    "evaluate.cost.batch_sizes=[1]",
    "evaluate.cost.prompt_tokens=16",
)
"""The recommended road in a minute or two. It reads its own data, because the text that the default calibrates on takes
the dense model two minutes to make up."""


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


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_recommended_road_recovers_smollm2(tmp_path: Path, real_store: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *SMALL, "tracker=none", "hydra.run.dir=run"]
    command.append(f"runtime.artifact_root={real_store}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["prune"], report["adapter"], report["data"]) == ("surgeon", "rora", "best")
    assert report["training"]["adapter"]["rank"] == 64
    assert report["training"]["objective"]["name"] == "distillation"
    assert abs(report["params"]["ratio_achieved"] - 0.2) <= 0.005
    text = report["texts"]["mean"]
    assert text["dense"] < text["recovered"]
    assert text["dense"] < text["pruned"]
    assert report["curve"][-1]["validation_loss"] < report["curve"][0]["validation_loss"]

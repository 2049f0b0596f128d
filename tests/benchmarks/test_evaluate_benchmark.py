"""The benchmark of the evaluation, on a tiny model: what it says, never how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.evaluate import main
from benchmarks.likelihood import _differences
from helpers.world import ROOT, World, make_world
from stages.stage import JSON
from stages.task_library.definitions import Document

DOCUMENTS = 3
PROMPTS = 2
TASKS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def result(world: World) -> JSON:
    overrides = [override for override in world.arguments() if not override.startswith("model")]
    limits = ["--limit", str(DOCUMENTS), "--generate-limit", str(PROMPTS)]
    model = ["--model", str(world.root / "model")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evaluate", "--threads", "1", *limits, *model, *overrides],
        cwd=ROOT,
        env=os.environ | world.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: JSON = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_last_line_has_the_ratios_and_both_tools_give_the_same_answers(result: JSON) -> None:
    assert result["documents"] == TASKS * DOCUMENTS
    assert result["max_loglikelihood_difference"] < 1e-3
    assert result["predictions_differ"] == 0
    for ratio in ("documents_per_second_ratio", "memory_ratio", "generate_ratio", "generate_ratio_same_tokens"):
        assert result[ratio] > 0
    seconds = {tool: result[tool]["seconds"] for tool in ("ours", "stock")}
    assert result["documents_per_second_ratio"] == pytest.approx(seconds["stock"] / seconds["ours"])
    assert result["stock"]["batch_size"] >= 1
    assert result["stock"]["dtype"] in ("float32", "bfloat16")


def test_both_tools_write_the_same_texts(result: JSON) -> None:
    generation = result["generation"]
    assert generation["prompts"] == TASKS * PROMPTS
    assert generation["texts_differ"] == generation["answers_differ"] == 0


def test_a_mistake_is_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["--model", str(world.root / "nothing")])
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_predictions_that_differ_are_counted_and_ties_apart() -> None:
    documents = [Document(doc={}, requests=[("q", " a"), ("q", " b")], gold=0, lengths=[1, 1]) for _ in range(3)]
    stock = [(value, False) for value in (-1.0, -2.0, -1.0, -1.0005, -2.0, -1.0)]
    ours = [(value, False) for value in (-2.5, -2.0, -1.0005, -1.0, -2.0, -1.0)]
    found = _differences(documents, ours, stock)
    assert found == {"max_difference": 1.5, "predictions_differ": 1, "ties": 1}

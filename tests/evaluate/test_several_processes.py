"""An evaluation on several processes: the bytes of one process. Few of them, because each takes seconds to start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.questions import ROWS, model_artifact, tasks_artifact
from stages.common.files import read_jsonl
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.stage import run
from stages.stage import Context

OPTIONS: dict[str, Any] = {
    "tasks": ["boolq", "piqa", "arc_easy"],
    "texts": ["wikipedia", "news"],
    "passages": 2,
    "generation_prompts": 2,
    "generation_tokens": 4,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, and tasks of which one has two blocks of documents."""
    root = tmp_path_factory.mktemp("inputs")
    rows = [{**row, "goal": f"{row['goal']} {number}"} for number, row in enumerate(ROWS["piqa"] * 40)]
    return {"model": model_artifact(root / "model"), "tasks": tasks_artifact(root / "tasks", piqa=rows)}


@pytest.fixture(scope="module")
def alone(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes, on one thread as each of several has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return evaluated(inputs, tmp_path_factory.mktemp("alone"), workers=1)
    finally:
        torch.set_num_threads(threads)


def evaluated(inputs: dict[str, Path], output: Path, workers: int, **options: Any) -> dict[str, bytes]:
    engine = "single" if workers == 1 else "ddp"
    run(EvaluateConfig(**OPTIONS | options), inputs, Context(output=output, workers=workers, engine=engine))
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_that_share_the_documents_write_what_one_writes(
    workers: int, inputs: dict[str, Path], alone: dict[str, bytes], tmp_path: Path
) -> None:
    assert evaluated(inputs, tmp_path, workers) == alone


def test_processes_go_on_where_one_was_killed(inputs: dict[str, Path], alone: dict[str, bytes], tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    kept = alone["documents/piqa.jsonl"].splitlines(keepends=True)[:30]
    (documents / "piqa.jsonl.unfinished").write_bytes(b"".join(kept))
    (tmp_path / "continuations.jsonl").write_bytes(alone["continuations.jsonl"])
    assert evaluated(inputs, tmp_path, 2) == alone


def test_a_model_spread_over_cards_is_judged_alike(
    inputs: dict[str, Path], alone: dict[str, bytes], tmp_path: Path
) -> None:
    context = Context(output=tmp_path, cards=("cpu", "cpu"), workers=2, engine="fsdp")
    run(EvaluateConfig(**OPTIONS), inputs, context)
    for name in ("boolq", "piqa", "arc_easy"):
        mine = list(read_jsonl(tmp_path / "documents" / f"{name}.jsonl"))
        theirs = [json.loads(line) for line in alone[f"documents/{name}.jsonl"].splitlines()]
        for ours, wanted in zip(mine, theirs, strict=True):
            assert ours["loglikelihoods"] == pytest.approx(wanted["loglikelihoods"], abs=1e-3)

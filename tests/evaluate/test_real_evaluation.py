"""The embedded model and its real rows, against lm-eval's `HFLM`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.material import built
from helpers.questions import stock, stock_loglikelihoods
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.inference.scorer import Scorer
from stages.task_library.definitions import documents, load
from stages.task_library.registry import RORA

DOCUMENTS = 10

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def artifacts(real_store: Path) -> dict[str, Path]:
    return built(["tracker=none", f"runtime.artifact_root={real_store}"], ["model", "tasks"]).paths


def test_every_task_scores_as_hflm_scores_it(artifacts: dict[str, Path]) -> None:
    model = artifacts["model"] / "model"
    reader, tokenizer = load_model(model, dtype="float32"), load_tokenizer(model)
    scorer, lm = Scorer(reader, tokenizer), stock(reader, tokenizer)
    for name in RORA:
        (task,) = load(name, artifacts["tasks"], limit=DOCUMENTS).values()
        requests = [request for document in documents(task, limit=DOCUMENTS) for request in document.requests]
        found, wanted = scorer.loglikelihoods(requests), stock_loglikelihoods(lm, requests)
        assert max(abs(ours[0] - theirs[0]) for ours, theirs in zip(found, wanted, strict=True)) < 1e-3, name
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted], name

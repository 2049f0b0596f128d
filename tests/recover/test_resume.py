"""Killed recoveries: real processes, real signals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.errors import UserError
from stages.recover.stage import run
from stages.stage import Context
from tests.recover.toy import config, data_artifact, model_artifact

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {
    "adapter": {"dropout": 0.1},
    "tokens": 2500,
    "curve_every": 700,
}
ARTIFACT = (
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "model/model.safetensors",
    "history.jsonl",
    "recovery.json",
)
# Before the first checkpoint, between two points at which the curve is measured, at one, and at the last.
KILLED_AT = (1, 4, 6, 10)
STRIKES = {
    "whole": [(None, 0)],
    "killed": [*(("SIGKILL", step) for step in KILLED_AT), (None, 0)],
    "terminated": [("SIGTERM", 3), (None, 0)],
    "unfinished": [("SIGKILL", 5)],
}


@dataclass(frozen=True)
class Recoveries:
    """The outputs under `root`, and what each run of an output left: its exit status and checkpoints."""

    root: Path
    runs: dict[str, list[tuple[int, list[str]]]]

    def assert_as_if_never_struck(self, output: str) -> None:
        for name in ARTIFACT:
            assert (self.root / output / name).read_bytes() == (self.root / "whole" / name).read_bytes(), name

    def copy(self, output: str, to: Path) -> Context:
        shutil.copytree(self.root / output, to)
        return Context(output=to)

    @property
    def inputs(self) -> dict[str, Path]:
        return {"model": self.root / "base", "data": self.root / "data"}


@pytest.fixture(scope="module")
def recoveries(tmp_path_factory: pytest.TempPathFactory) -> Recoveries:
    root = tmp_path_factory.mktemp("recoveries")
    model_artifact(root / "base")
    data_artifact(root / "data")
    command = [sys.executable, "-m", "tests.recover.runs", str(root)]
    plan = json.dumps({"settings": SETTINGS, "strikes": STRIKES})
    done = subprocess.run([*command, plan], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    runs = defaultdict(list)
    for line in done.stdout.splitlines():
        left = json.loads(line)
        runs[left["output"]].append((left["status"], left["checkpoints"]))
    assert runs["whole"] == [(0, [])]
    return Recoveries(root, dict(runs))


def test_a_run_killed_at_any_step_and_run_again_ends_in_the_same_bytes(recoveries: Recoveries) -> None:
    killed = -signal.SIGKILL
    assert recoveries.runs["killed"] == [
        (killed, []),
        (killed, ["step-00000003"]),
        (killed, ["step-00000005"]),
        (killed, ["step-00000009"]),
        (0, []),
    ]
    recoveries.assert_as_if_never_struck("killed")


def test_sigterm_checkpoints_at_once_and_exits_cleanly(recoveries: Recoveries) -> None:
    assert recoveries.runs["terminated"] == [(128 + signal.SIGTERM, ["step-00000003"]), (0, [])]
    recoveries.assert_as_if_never_struck("terminated")


def test_a_half_written_checkpoint_is_never_used(recoveries: Recoveries, tmp_path: Path) -> None:
    context = recoveries.copy("unfinished", tmp_path / "torn")
    (whole,) = (context.output / "checkpoint").iterdir()
    torn = whole.with_name("writing-step-00000099")
    shutil.copytree(whole, torn)
    (torn / "state.safetensors").write_bytes(b"torn")

    summary = run(config(**SETTINGS), recoveries.inputs, context)

    assert summary["training"] == json.loads((recoveries.root / "whole" / "recovery.json").read_text())["training"]
    assert not torn.exists()


def test_a_checkpoint_of_another_recovery_is_refused(recoveries: Recoveries, tmp_path: Path) -> None:
    context = recoveries.copy("unfinished", tmp_path / "other")

    with pytest.raises(UserError, match=r"is a checkpoint of another recovery\. Remove .*other to start afresh"):
        run(config(**SETTINGS | {"seed": 1}), recoveries.inputs, context)

"""Several processes on one recovery: real processes, real signals. Few of them, because each takes seconds to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from helpers.processes import same_imports
from helpers.toy import config, data_artifact, model_artifact
from pipeline.planning.runtime import resolve_workers
from stages.common.machine import Peak, peaks_of_workers, reset_peak_memory
from stages.errors import UserError
from stages.recover.stage import run
from stages.stage import JSON, Context

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {
    "adapter": {"name": "dora", "dropout": 0.1},
    "tokens": 1500,
    "micro_batch_tokens": 64,
    "curve_every": 700,
    "keep": "best",
}


@dataclass(frozen=True)
class Recoveries:
    """Recoveries of one model on the same rows, under `root`."""

    root: Path

    def run(
        self, output: str, engine: str = "single", struck: Callable[[JSON], None] = lambda point: None, **settings: Any
    ) -> JSON:
        """Recover, on two workers unless on a single one, in a directory that may hold a checkpoint."""
        (self.root / output).mkdir(exist_ok=True)
        workers = 1 if engine == "single" else 2
        context = Context(
            output=self.root / output,
            cache=self.root / "cache",
            checkpoint_seconds=0,
            workers=workers,
            engine=engine,
            log=struck,
        )
        return run(config(**SETTINGS | settings), {"model": self.root / "base", "data": self.root / "data"}, context)

    def checkpoints(self, output: str) -> list[str]:
        return sorted(path.name for path in (self.root / output / "checkpoint").glob("*"))

    def assert_same(self, one: str, other: str) -> None:
        """Compare curves and adapters, but for rounding."""
        curves = [
            [json.loads(line) for line in (self.root / output / "history.jsonl").read_text().splitlines()]
            for output in (one, other)
        ]
        assert len(curves[0]) == len(curves[1]) > 4
        for ours, theirs in zip(*curves, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        adapters = [load_file(self.root / output / "adapter/adapter_model.safetensors") for output in (one, other)]
        assert_close(adapters[0], adapters[1], rtol=1e-3, atol=1e-5)
        merged = [load_file(self.root / output / "model/model.safetensors") for output in (one, other)]
        assert_close(merged[0], merged[1], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def recoveries(tmp_path_factory: pytest.TempPathFactory) -> Recoveries:
    root = tmp_path_factory.mktemp("workers")
    model_artifact(root / "base")
    data_artifact(root / "data")
    recoveries = Recoveries(root)
    recoveries.run("single")
    return recoveries


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    yield
    assert alive(_workers()) == []


def _workers() -> list[psutil.Process]:
    """Return the processes that the fork server started."""
    return [worker for server in psutil.Process().children() for worker in server.children()]


def alive(processes: list[psutil.Process], seconds: float = 10.0) -> list[psutil.Process]:
    """Return those that still run after so long."""
    return psutil.wait_procs(processes, timeout=seconds)[1]


def at_step(step: int, strike: Callable[[], None]) -> Callable[[JSON], None]:
    """Return a log that strikes when the point of `step` comes."""
    return lambda point: strike() if point["step"] == step else None


def test_two_replicas_give_the_curve_and_the_adapter_of_one_process(recoveries: Recoveries) -> None:
    reset_peak_memory()
    summary = recoveries.run("ddp", "ddp")

    # Each worker has reported its own, beside that of this process.
    assert list(peaks_of_workers()) == [0, 1]
    assert all(peak == Peak(None) or (peak.memory_bytes or 0) > 2**26 for peak in peaks_of_workers().values())
    recoveries.assert_same("ddp", "single")
    assert summary == json.loads((recoveries.root / "ddp" / "recovery.json").read_text())


def test_a_killed_worker_is_one_error_and_two_shards_go_on_from_its_checkpoint(recoveries: Recoveries) -> None:
    with pytest.raises(UserError, match=r"worker 1 was ended from outside.*goes on from the last checkpoint"):
        recoveries.run("fsdp", "ddp", at_step(2, lambda: _youngest().kill()))
    assert alive(_workers()) == []
    assert len(recoveries.checkpoints("fsdp")) == 1

    recoveries.run("fsdp", "fsdp")

    recoveries.assert_same("fsdp", "single")


def _youngest() -> psutil.Process:
    return max(_workers(), key=lambda worker: worker.pid)


def test_sigterm_checkpoints_the_shards_and_one_process_goes_on(recoveries: Recoveries) -> None:
    with pytest.raises(SystemExit) as ended:
        recoveries.run("terminated", "fsdp", at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert ended.value.code == 128 + signal.SIGTERM
    assert alive(_workers()) == []
    (left,) = recoveries.checkpoints("terminated")
    assert left >= "step-00000003"

    recoveries.run("terminated")

    recoveries.assert_same("terminated", "single")


def test_a_killed_parent_leaves_no_workers() -> None:
    command = [sys.executable, "-m", "helpers.orphans"]
    killed = subprocess.run(command, cwd=ROOT, env=same_imports(), stdout=subprocess.PIPE, text=True, timeout=300)

    assert killed.returncode == -signal.SIGKILL
    ids = json.loads(killed.stdout)
    assert len(ids) == 2
    assert alive([psutil.Process(number) for number in ids if psutil.pid_exists(number)]) == []


def test_what_a_worker_raises_is_raised_here(recoveries: Recoveries) -> None:
    with pytest.raises(UserError, match="'q_porj' is no linear layer of this model, did you mean 'q_proj'?"):
        recoveries.run("wrong", "ddp", adapter={"targets": ["q_porj"]})


def test_a_number_of_workers_goes_with_an_engine() -> None:
    assert resolve_workers("single", None, "cpu") == 1
    assert resolve_workers("ddp", 3, "cpu") == 3
    with pytest.raises(UserError, match="runtime.workers=2"):
        resolve_workers("ddp", None, "cpu")
    with pytest.raises(UserError, match="runtime=ddp or fsdp"):
        resolve_workers("single", 2, "cpu")
    with pytest.raises(UserError, match="did you mean 'fsdp'"):
        resolve_workers("fspd", 2, "cpu")

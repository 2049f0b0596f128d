"""Killed recoveries: real processes, real signals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from helpers.processes import same_imports
from helpers.toy import config, data_artifact, model_artifact
from stages.common.files import read_json, write_json
from stages.common.sealed import SEAL, write_sealed
from stages.errors import UserError
from stages.recover.checkpoints import PROGRESS, STATE, Progress, interval, resume, save
from stages.recover.stage import run
from stages.stage import Context

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {
    "adapter": {"dropout": 0.1},
    "tokens": 1500,
    "curve_every": 500,
}
ARTIFACT = (
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "model/model.safetensors",
    "history.jsonl",
    "recovery.json",
)
KILL = "SIGKILL"
# Each strike, and which checkpoints it leaves.
KILLED: list[tuple[tuple[str, str, int], list[str]]] = [
    # Before the first checkpoint.
    ((KILL, "point", 1), []),
    # In the second micro-batch of a step.
    ((KILL, "forward", 650), ["step-00000001"]),
    # While a checkpoint is written: its tensors are there.
    ((KILL, ".progress.json", 1), ["step-00000001", "writing-step-00000002"]),
    # When it has its name, and the one before it is still there.
    ((KILL, "/step-", 2), ["step-00000001", "step-00000002"]),
    # At the last step, before its checkpoint.
    ((KILL, "point", 6), ["step-00000005"]),
    # While the merged model is written.
    ((KILL, ".model.partial", 3), ["step-00000006"]),
    # When all is done, while the checkpoint is removed.
    ((KILL, ".checkpoint-removed", 2), []),
]
STRIKES: dict[str, list[tuple[str, str, int] | None]] = {
    "whole": [None],
    "killed": [strike for strike, _ in KILLED] + [None],
    "terminated": [("SIGTERM", "forward", 1010), ("SIGTERM", "point", 6), None],
    "unfinished": [(KILL, "point", 5)],
}
# Only the signal and the last step make checkpoints.
SECONDS = {"terminated": 3600}


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
    command = [sys.executable, "-m", "helpers.runs", str(root)]
    plan = json.dumps({"settings": SETTINGS, "strikes": STRIKES, "seconds": SECONDS})
    done = subprocess.run([*command, plan], cwd=ROOT, env=same_imports(), stdout=subprocess.PIPE, text=True, check=True)
    runs = defaultdict(list)
    for line in done.stdout.splitlines():
        left = json.loads(line)
        runs[left["output"]].append((left["status"], left["checkpoints"]))
    assert runs["whole"] == [(0, [])]
    return Recoveries(root, dict(runs))


def test_a_run_killed_at_any_moment_and_run_again_ends_in_the_same_bytes(recoveries: Recoveries) -> None:
    assert recoveries.runs["killed"] == [*((-signal.SIGKILL, left) for _, left in KILLED), (0, [])]
    recoveries.assert_as_if_never_struck("killed")


def test_sigterm_checkpoints_the_last_whole_step_at_once_and_exits_cleanly(recoveries: Recoveries) -> None:
    terminated = 128 + signal.SIGTERM
    assert recoveries.runs["terminated"] == [(terminated, ["step-00000002"]), (terminated, ["step-00000006"]), (0, [])]
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


@pytest.mark.parametrize("damage", ["state.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(recoveries: Recoveries, tmp_path: Path, damage: str) -> None:
    context = recoveries.copy("unfinished", tmp_path / "damaged")
    (checkpoint,) = (context.output / "checkpoint").iterdir()
    file = checkpoint / damage
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(UserError, match=f"the checkpoint {checkpoint} is damaged .*Remove it to go on"):
        run(config(**SETTINGS), recoveries.inputs, context)


def _flipped(content: bytes) -> bytes:
    """Return the content with one bit of a tensor flipped: the tensors lie at the end."""
    return content[:-101] + bytes([content[-101] ^ 64]) + content[-100:]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (STATE, _flipped),
        (PROGRESS, lambda content: content.replace(b'"tokens": 2048', b'"tokens": 1048')),
        (PROGRESS, lambda content: content.replace(b'"labelled"', b'"labdlled"')),
    ],
    ids=["a bit of a tensor", "a digit", "a name"],
)
def test_a_checkpoint_that_is_not_what_was_written_is_refused(
    name: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    weight = torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    directory = save(
        tmp_path, Progress(step=3, tokens=2048), {"w": weight}, optimizer, {}, {"w": weight.detach().clone()}
    )
    again = torch.nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    assert resume(tmp_path, {"w": again}, torch.optim.AdamW([again]), {}, {}).tokens == 2048
    assert torch.equal(again, weight)
    before = (directory / name).read_bytes()
    (directory / name).write_bytes(change(before))
    assert (directory / name).read_bytes() != before
    with pytest.raises(UserError, match=f"the checkpoint {directory} is damaged .*not what was written.*Remove it"):
        resume(tmp_path, {"w": again}, torch.optim.AdamW([again]), {}, {})


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    directory = save(tmp_path, Progress(step=3, tokens=2048), {"w": weight}, torch.optim.AdamW([weight]), {}, {})
    facts = read_json(directory / PROGRESS)
    write_json(directory / PROGRESS, {name: facts[name] for name in ("identity", "progress", "computed")})
    assert resume(tmp_path, {"w": weight}, torch.optim.AdamW([weight]), {}, {}).tokens == 2048


def test_a_full_disk_leaves_the_checkpoint_before(
    recoveries: Recoveries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = recoveries.copy("unfinished", tmp_path / "full")
    (checkpoint,) = (context.output / "checkpoint").iterdir()

    def save_half(tensors: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("stages.recover.checkpoints.save_file", save_half)
        with pytest.raises(SafetensorError):
            run(config(**SETTINGS), recoveries.inputs, context)
    assert list((context.output / "checkpoint").iterdir()) == [checkpoint]

    summary = run(config(**SETTINGS), recoveries.inputs, context)
    assert summary["training"] == json.loads((recoveries.root / "whole" / "recovery.json").read_text())["training"]


@pytest.mark.parametrize(
    ("name", "other"), [("threads", 999), ("processor", "another"), ("instructions", "others"), ("torch", "1.0")]
)
def test_a_resume_where_sums_are_rounded_otherwise_says_so(
    name: str, other: Any, recoveries: Recoveries, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = recoveries.copy("unfinished", tmp_path / name)
    (checkpoint,) = (context.output / "checkpoint").iterdir()
    saved = read_json(checkpoint / PROGRESS)
    assert saved["computed"][name]
    saved["computed"][name] = other
    write_sealed(checkpoint / PROGRESS, {key: value for key, value in saved.items() if key != SEAL})

    run(config(**SETTINGS), recoveries.inputs, context)

    (said,) = (record.getMessage() for record in caplog.records if "rounding" in record.getMessage())
    assert f"begun with {name} {other}, now" in said


def test_checkpoints_that_take_long_to_write_are_written_less_often() -> None:
    assert interval(60, saving=0.1) == 60
    assert interval(60, saving=30) == pytest.approx(1000)
    assert interval(0, saving=30) == 0  # every step, for whoever asks for it

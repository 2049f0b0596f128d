"""`recover.keep=best`: the parameters of the lowest validation loss, through interruptions and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.toy import config, data_artifact, model_artifact, recovered
from stages.common.files import read_jsonl, write_jsonl
from stages.errors import UserError
from stages.recover.config import RecoverStageConfig
from stages.recover.stage import run
from stages.stage import JSON, Context

TOKENS: dict[str, Any] = {"tokens": 2000, "curve_every": 400}
ARTIFACT = ("adapter/adapter_model.safetensors", "model/model.safetensors", "history.jsonl", "recovery.json")


@pytest.fixture
def overfitted(tmp_path: Path) -> Path:
    """Inputs on which the validation loss falls, then rises: every animal is said to say the same."""
    return _inputs(tmp_path, answer="woof")


def test_the_parameters_of_the_lowest_validation_loss_are_saved(overfitted: Path, tmp_path: Path) -> None:
    output, summary = recovered(overfitted, config(keep="best", **TOKENS))
    measured = _measured(output)
    best = min(measured, key=lambda point: point["validation_loss"])
    assert measured[0] is not best is not measured[-1], "the curve has no lowest point inside: the test shows nothing"
    assert summary["kept"] == {"parameters": "best", "step": best["step"], "tokens": best["tokens"]}
    assert summary["validation"]["final_loss"] == best["validation_loss"]
    assert f"after {best['tokens']:,} tokens" in (output / "model" / "README.md").read_text()

    # A further recovery measures the merged model before its first step.
    inputs = _inputs(tmp_path / "again", answer="woof", model=output)
    again, _ = recovered(inputs, config(tokens=1))
    assert _measured(again)[0]["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-4)


def test_keeping_the_best_does_not_change_the_training(overfitted: Path) -> None:
    last, summary = recovered(overfitted, config(**TOKENS), name="last")
    best, _ = recovered(overfitted, config(keep="best", **TOKENS), name="best")

    assert summary["kept"]["step"] == _measured(last)[-1]["step"]
    assert summary["validation"]["final_loss"] == _measured(last)[-1]["validation_loss"]
    assert (last / "history.jsonl").read_bytes() == (best / "history.jsonl").read_bytes()
    assert (last / ARTIFACT[0]).read_bytes() != (best / ARTIFACT[0]).read_bytes()


def test_training_that_only_does_harm_keeps_the_model_as_it_was(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, answer="\x7f~|")  # letters that no validation row has
    output, summary = recovered(inputs, config(keep="best", **TOKENS))

    assert summary["kept"]["step"] == 0
    assert summary["validation"]["final_loss"] == summary["validation"]["initial_loss"]
    base = load_file(inputs / "base" / "model" / "model.safetensors")
    for name, tensor in load_file(output / "model" / "model.safetensors").items():
        assert tensor.equal(base[name]), name


def test_a_run_stopped_at_any_step_ends_in_the_same_bytes(overfitted: Path) -> None:
    settings = config(keep="best", **TOKENS)
    whole, summary = recovered(overfitted, settings, name="whole")
    assert summary["kept"]["step"] == 5
    stopped = overfitted / "stopped"
    stopped.mkdir()

    for step in (2, 5, 7, 8):  # what it ran for is lost where no checkpoint was written
        with pytest.raises(Stopped):
            _run(overfitted, stopped, settings, stop_at=step)
    _run(overfitted, stopped, settings)

    for name in ARTIFACT:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_may_be_kept_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recover.keep must be one of last, best, and is 'first'"):
        recovered(tmp_path, config(keep="first"))


class Stopped(Exception):
    """Raised where the process would have been killed."""


def _run(root: Path, output: Path, settings: RecoverStageConfig, stop_at: int | None = None) -> None:
    def log(point: JSON) -> None:
        if point["step"] == stop_at:
            raise Stopped

    context = Context(output=output, checkpoint_seconds=0, log=log)
    run(settings, {"model": root / "base", "data": root / "data"}, context)


def _inputs(root: Path, *, answer: str, model: Path | None = None) -> Path:
    """Write a model and data whose training rows all have `answer`, and whose validation rows have the right ones."""
    loaded = None if model is None else AutoModelForCausalLM.from_pretrained(model / "model")
    model_artifact(root / "base", loaded)
    train = data_artifact(root / "data", choices=False) / "train.jsonl"
    write_jsonl(train, [row | {"response": answer} for row in list(read_jsonl(train))])
    return root


def _measured(output: Path) -> list[JSON]:
    points = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return [point for point in points if "validation_loss" in point]

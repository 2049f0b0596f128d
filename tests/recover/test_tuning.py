from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.toy import config, data_artifact, model_artifact
from stages.common.files import read_json, read_jsonl
from stages.errors import UserError
from stages.recover.config import RecoverStageConfig, TuneStageConfig
from stages.recover.tuning import choose, trial, tune
from stages.stage import Context

HOPELESS = 1e30
"""A rate whose first update makes every logit infinite or undefined."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": model_artifact(root / "base"), "data": data_artifact(root / "data")}


def at(rate: float, tokens: int = 600) -> RecoverStageConfig:
    return config(learning_rate=rate, tokens=tokens, validation_tokens=150, test_tokens=150)


def tried(root: Path, inputs: dict[str, Path], rates: list[float]) -> dict[str, Path]:
    """Run a trial at each rate; returns them as inputs of a tuning."""
    for rate in rates:
        output = root / f"{rate:g}"
        output.mkdir()
        trial(at(rate), inputs, Context(output=output))
    return {f"trial {rate:g}": root / f"{rate:g}" for rate in rates}


def tuning(rates: list[float], shared: float, tokens: int = 600) -> TuneStageConfig:
    known: dict[str, Any] = {name: getattr(at(shared, tokens), name) for name in asdict(at(shared))}
    return TuneStageConfig(**known, rates=rates, tokens=600)


@pytest.fixture(scope="module")
def trials(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tried(tmp_path_factory.mktemp("trials"), inputs, [1e-4, 2e-2, HOPELESS])


def test_the_best_trial_is_the_recovery_and_every_other_is_recorded(
    inputs: dict[str, Path], trials: dict[str, Path], tmp_path: Path
) -> None:
    summary = tune(tuning([1e-4, 2e-2, HOPELESS], 1e-4), inputs | trials, Context(output=tmp_path))
    found = summary["tuning"]
    assert (found["chosen"], found["shared"], found["edge"]) == (2e-2, 1e-4, None)
    low, high, hopeless = found["trials"]
    assert high["validation_loss"] < low["validation_loss"]
    assert (low["diverged"], hopeless["validation_loss"], hopeless["test"]) == (None, None, None)
    assert hopeless["diverged"] == {"step": 2, "tokens": hopeless["tokens"]}
    assert hopeless["tokens"] < 600 <= low["tokens"]
    assert found["tokens"] == sum(entry["tokens"] for entry in found["trials"])

    best = trials["trial 0.02"]
    for name in ("adapter/adapter_model.safetensors", "history.jsonl"):
        assert (tmp_path / name).read_bytes() == (best / name).read_bytes()
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert read_json(tmp_path / "recovery.json") == read_json(best / "recovery.json") | {"tuning": found}


def test_a_trial_that_diverges_has_its_curve_and_no_adapter(trials: dict[str, Path]) -> None:
    hopeless = trials[f"trial {HOPELESS:g}"]
    assert [point["step"] for point in read_jsonl(hopeless / "history.jsonl")] == [0, 1]
    assert sorted(path.name for path in hopeless.iterdir()) == ["history.jsonl", "recovery.json"]


def test_after_trials_of_a_smaller_budget_the_recovery_has_its_own(
    inputs: dict[str, Path], trials: dict[str, Path], tmp_path: Path
) -> None:
    summary = tune(tuning([1e-4, 2e-2], 1e-4, tokens=900), inputs | trials, Context(output=tmp_path))
    assert summary["training"]["tokens"] >= 900 > summary["tuning"]["trials"][0]["tokens"]
    assert summary["tuning"]["edge"] == "highest"
    assert max(point.get("learning_rate", 0) for point in read_jsonl(tmp_path / "history.jsonl")) > 1e-2


def test_the_test_rows_are_none_of_the_validation_rows(trials: dict[str, Path], inputs: dict[str, Path]) -> None:
    recovery = read_json(trials["trial 0.02"] / "recovery.json")
    rows = len(list(read_jsonl(inputs["data"] / "validation.jsonl")))
    assert recovery["validation"]["rows"] + recovery["test"]["rows"] <= rows
    assert recovery["test"]["loss"] != recovery["validation"]["final_loss"]


def test_test_rows_change_nothing_that_is_trained(inputs: dict[str, Path], tmp_path: Path) -> None:
    outputs = []
    for tokens in (0, 150):
        (tmp_path / str(tokens)).mkdir()
        settings = replace(at(2e-2), recover=replace(at(2e-2).recover, test_tokens=tokens))
        summary = trial(settings, inputs, Context(output=tmp_path / str(tokens)))
        assert (summary["test"] is None) == (tokens == 0)
        outputs.append((tmp_path / str(tokens) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def entry(rate: float, loss: float | None) -> dict[str, Any]:
    diverged = None if loss is not None else {"step": 1, "tokens": 0}
    return {"learning_rate": rate, "tokens": 10, "validation_loss": loss, "diverged": diverged}


def test_an_edge_is_named_and_of_equals_the_lower_rate_is_taken() -> None:
    assert choose([entry(1, 2.0), entry(2, 1.0), entry(3, 1.5)], shared=1)["edge"] is None
    assert choose([entry(1, 1.0), entry(2, 1.0), entry(3, 1.5)], shared=1)["edge"] == "lowest"
    assert choose([entry(1, 1.0), entry(2, 0.5), entry(3, None)], shared=1)["edge"] is None
    assert choose([entry(1, 1.0)], shared=1)["edge"] is None


def test_a_grid_that_diverges_everywhere_is_an_error_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"every rate \(1, 2\).*tune_factors"):
        choose([entry(1, None), entry(2, None)], shared=1)

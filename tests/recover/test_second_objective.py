"""A second objective with a teacher goes all the way: planned, trained, on the card and in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.toy import config, data_artifact, model_artifact
from helpers.world import World, make_world
from stages.common.files import read_json, read_jsonl
from stages.decoders.card import training_remarks
from stages.decoders.checkpoint import load_model
from stages.decoders.logits import Logits
from stages.decoders.packed_attention import hidden_states, use_packed_attention
from stages.recover.config import RecoverConfig
from stages.recover.loss import summed_cross_entropy
from stages.recover.objectives.objective import Objective
from stages.recover.objectives.registry import OBJECTIVES, decisive, objective_of
from stages.recover.stage import run
from stages.rows.packing import Batch
from stages.stage import Context

OLDER = Path(__file__).resolve().parents[1] / "golden" / "store" / "artifacts"


@dataclass(kw_only=True, slots=True)
class NearnessConfig:
    """Options of the toy."""

    factor: float = 0.5


@dataclass(kw_only=True, slots=True)
class NearRecoverConfig(RecoverConfig):
    """A recovery's options with those of the toy."""

    nearness: NearnessConfig = field(default_factory=NearnessConfig)


def build(model: Any, options: Any, teacher: Path | None, dtype: str, context: Context) -> Callable[..., Any]:
    """Return cross-entropy and the squared distance from the teacher's last hidden states."""
    assert teacher is not None
    taught_by = load_model(teacher, dtype=dtype).requires_grad_(False)
    use_packed_attention(taught_by)
    factor = 0.5 if options is None else options.factor

    def summed(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        with torch.no_grad():
            goal_TE = hidden_states(taught_by, batch)
        own, goal = hidden_TE[batch.predictors_N], goal_TE[batch.predictors_N]
        said = summed_cross_entropy(own, model.get_output_embeddings(), batch.labels_N, Logits.of(model))
        distance = (own - goal).square().mean(1).sum()
        return {"loss": said + factor * distance, "cross_entropy": said, "distance": distance}

    return summed


def sentences(options: Any, teacher: str) -> list[str]:
    return [f"Kept near {teacher}.", "This is the toy's second sentence."]


PLAIN = Objective(taught=True, sentences=sentences, build=build)
WITH_OPTIONS = Objective(
    config=NearnessConfig,
    taught=True,
    facts=lambda options: {"factor": options.factor},
    sentences=sentences,
    build=build,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_its_sentences_are_on_the_card_and_in_the_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "nearness", PLAIN)
    report = world.run("recover.objective=nearness", "evaluate=none")

    assert report["training"]["objective"]["name"] == "nearness"
    assert any("distance" in point for point in report["curve"]), "what is beside the loss is recorded"
    (page,) = (world.root / "artifacts" / "report").glob("*/report.md")
    card = next((world.root / "artifacts" / "recover").glob("*/model/README.md"))
    for text in (card.read_text(), page.read_text()):
        assert "Kept near" in text
        assert "This is the toy's second sentence." in text


def test_its_own_options_are_its_functions_and_no_other_objectives_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "nearness", WITH_OPTIONS)
    artifact, data = model_artifact(tmp_path / "model"), data_artifact(tmp_path / "data")
    chosen = config()
    chosen.recover = NearRecoverConfig(
        objective="nearness", nearness=NearnessConfig(factor=3.0), tokens=500, batch_tokens=256, sequence_length=64
    )
    summary = run(
        chosen, {"model": artifact, "data": data, "teacher": artifact}, Context(output=tmp_path, cache=tmp_path / "c")
    )

    assert summary["objective"]["factor"] == 3.0
    assert read_json(tmp_path / "recovery.json")["objective"]["name"] == "nearness"
    for point in [point for point in read_jsonl(tmp_path / "history.jsonl") if point["step"] > 0]:
        assert point["loss"] == pytest.approx(point["cross_entropy"] + 3 * point["distance"], rel=1e-4)
    other = NearRecoverConfig(objective="cross_entropy", nearness=NearnessConfig(factor=3.0))
    assert decisive(other) == NearRecoverConfig(objective="cross_entropy")
    assert decisive(chosen.recover) == chosen.recover


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objectives_options_are_the_recoverys_field_of_its_name(name: str) -> None:
    own = {f.name: f for f in fields(RecoverConfig)}
    objective, options = objective_of(RecoverConfig(objective=name))
    assert (objective.config is not None) == (name in own)
    assert options is None or options == objective.config()  # type: ignore[misc]
    assert name not in own or own[name].default_factory is not MISSING


def test_recoveries_of_earlier_versions_keep_a_sentence_on_their_teacher() -> None:
    records = [read_json(path) for path in sorted(OLDER.glob("recover/*/recovery.json"))]
    said = [list(training_remarks(record)) for record in records if "teacher" in record["objective"]]
    assert said
    assert all("Distilled from" in remarks[0] and "at temperature 1, weight 1." in remarks[0] for remarks in said)

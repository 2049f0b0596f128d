from __future__ import annotations

from typing import Any

import pytest

from helpers.configurations import planned
from helpers.world import World, make_world
from stages.errors import UserError

GRID = "recover.tune_factors=[0.1,1,10]"
SHORT = ("evaluate=none", "adapter.rank=4", "prune=magnitude", "recover.tokens=600", "recover.learning_rate=1e-3")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in report["stages"]}


def test_trials_are_artifacts_of_their_own_that_the_report_lists_and_a_wider_grid_adds_to(world: World) -> None:
    report = world.run(*SHORT, GRID, "recover.tune=lr")
    trials = {name for name in statuses(report) if name.startswith("trial")}
    assert trials == {"trial-0.0001", "trial-0.001", "trial-0.01"}
    assert set(statuses(report).values()) == {"built"}
    assert set(statuses(world.run(*SHORT, GRID, "recover.tune=lr")).values()) == {"hit"}

    tuning = report["training"]["tuning"]
    assert [entry["learning_rate"] for entry in tuning["trials"]] == [1e-4, 1e-3, 1e-2]
    assert tuning["shared"] == 1e-3
    assert tuning["chosen"] == min(tuning["trials"], key=lambda entry: entry["validation_loss"])["learning_rate"]
    page = (world.root / "outputs" / "1" / "report.md").read_text()
    assert "| 0.001 | shared |" in page
    assert "3 trials of 600 tokens" in page
    assert not any(role.startswith("trial") for role in report["configuration"])

    wider = statuses(world.run(*SHORT, "recover.tune_factors=[0.1,1,10,20]", "recover.tune=lr"))
    assert {name for name, status in wider.items() if status == "built"} == {"trial-0.02", "recover", "report"}


def test_a_rate_that_diverges_is_a_result_and_not_the_end_of_the_run(world: World) -> None:
    report = world.run(*SHORT, "recover.tune_factors=[1,1e30]", "recover.tune=lr", "recover.merge=false")
    (tuned,) = (
        directory for directory in (world.root / "artifacts" / "tune").iterdir() if not (directory / "model").exists()
    )
    assert (tuned / "adapter" / "adapter_model.safetensors").is_file()
    assert report["training"]["tuning"]["trials"][1]["diverged"]["step"] >= 1
    assert "diverged" in (world.root / "outputs" / str(world.runs) / "report.md").read_text()
    with pytest.raises(UserError, match=r"recover\.learning_rate"):
        world.run(*SHORT, "recover.learning_rate=1e27")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recover.tune=lrr", "did you mean 'lr'"),
        ("recover.tune_factors=[0.1,10]", "1 among them"),
        ("recover.tune_factors=[1,1]", "different"),
        ("recover.tune_factors=[1,-3]", "above 0"),
        ("recover.tune_tokens=70000", "recover.tokens=60000"),
        ("recover.tune_seed=1", "recover.tune_tokens is below"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_before_anything_runs(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned(override)


def test_seeds_share_trials_of_one_seed(world: World) -> None:
    short = (*SHORT, GRID, "recover.tune=lr", "recover.tune_tokens=300", "recover.tune_seed=0")
    one, other = (world.plan(*short, f"recover.seed={seed}") for seed in (0, 1))
    shared = {role for role in one.roles if role.startswith("trial")}
    assert len(shared) == 3
    assert all(one.roles[role].key == other.roles[role].key for role in shared)
    assert one.roles["recover"].key != other.roles["recover"].key

"""A build that is killed, or meets a full or a read-only disk, costs time alone: again, it ends in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.processes import same_imports
from helpers.world import World, environment, make_world
from pipeline.engine.engine import Engine

OPTIONS = (
    "recover.tokens=1200",
    "recover.curve_every=300",
    "evaluate.limit=2",
    "evaluate.cost.repeats=1",
    "evaluate.cost.batch_sizes=[1]",
    "evaluate.cost.prompt_tokens=16",
    "evaluate.cost.new_tokens=2",
    "export=gguf",
)
TUNED = (*OPTIONS[:-1], "recover.tune=lr", "recover.tune_factors=[0.3,1]")
MEASURED = ("cost",)
"""Roles whose artifacts hold times. What is built again holds others."""
ROLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("model", "data", "scores", "prune", "recover", "tasks", "evaluate-recovered"), OPTIONS),
    **dict.fromkeys(("cost", "report", "gguf", "export"), OPTIONS),
    **dict.fromkeys(("trial-0.0009", "recover (tuned)"), TUNED),
}
SMALL = ("prune=random", "adapter=none", "evaluate=none")
FILES, TIMES = 10, 6
"""Kills a role at file operations, and at random times. With the daily ones there are more than 200."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which every artifact of every role has been built once."""
    world = make_world(tmp_path_factory.mktemp("world"))
    world.run(*OPTIONS)
    with environment(world.environment):
        graph = world.plan(*TUNED)
        engine = Engine(graph, world.store, cache=world.root / "cache", force=[], threads=1, checkpoint_seconds=0)
        engine.ensure(graph.roles["recover"])
    return world


def killed(world: World, role: str, options: Sequence[str], *, seed: int, **trials: int) -> list[dict[str, Any]]:
    """Return what came of each kill."""
    plan = {
        "arguments": world.arguments(*options),
        "role": role,
        "seed": seed,
        **trials,
    }
    done = subprocess.run(
        [sys.executable, "-m", "helpers.killed", json.dumps(plan)],
        env=same_imports() | world.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found: list[dict[str, Any]], role: str, record: Callable[[str, object], None]) -> None:
    measured = role in MEASURED
    # A disk that refuses is one error of the user's, status 1; a fault of ours would be 2.
    lost = [one for one in found if one["status"] > 1 or one["again"] or not one["whole"]]
    lost += [one for one in found if not one["same"] and not measured and one not in lost]
    record("tried", len(found))
    record("lost", len(lost))
    assert lost == []


def test_a_few_kills_cost_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    world = make_world(tmp_path)
    world.run(*SMALL)
    found = killed(world, "prune", SMALL, files=5, times=1, full=2, read_only=1, seed=1)
    assert [one["status"] for one in found][:5] == [-9] * 5
    assert [one["status"] for one in found][6:] == [1] * 3
    check(found, "prune", record_property)


@pytest.mark.faults
@pytest.mark.parametrize("role", ROLES)
def test_kills_at_every_point_cost_nothing(
    whole: World, role: str, record_property: Callable[[str, object], None]
) -> None:
    found = killed(whole, role.partition(" ")[0], ROLES[role], files=FILES, times=TIMES, full=3, read_only=2, seed=2)
    assert sum(one["status"] == -9 for one in found) >= FILES
    check(found, role, record_property)


@pytest.mark.faults
def test_every_stage_is_killed(whole: World) -> None:
    from stages.registry import STAGES

    with environment(whole.environment):
        stages = {whole.plan(*options).roles[role.partition(" ")[0]].stage.name for role, options in ROLES.items()}
    assert stages == set(STAGES)

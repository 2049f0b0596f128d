"""Artifacts that an earlier version of this project wrote are found by this one, under the same keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.older_store import ELSEWHERE, HERE, RUNS, SMOKE, older_world, planned
from helpers.world import World, environment
from pipeline.engine.engine import Engine


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("older")
    shutil.copytree(HERE / "artifacts", root / "artifacts")
    return older_world(root)


@pytest.mark.parametrize("name", RUNS)
def test_what_an_earlier_version_built_is_a_hit(name: str, older: World) -> None:
    with environment(older.environment):
        graph = older.plan(*RUNS[name])
    engine = Engine(graph, older.store, cache=older.root / "cache", force=[])
    kept = {role: node for role, node in graph.roles.items() if node.stage.name not in ELSEWHERE}
    kept = {role: node for role, node in kept.items() if "cost" not in node.inputs}
    status = {role: engine.status(node) for role, node in kept.items()}
    assert {role: (found.state, found.why) for role, found in status.items()} == dict.fromkeys(kept, ("hit", ""))
    assert {"prune", "recover", "data"} <= kept.keys()


def test_the_smoke_experiment_plans_the_same_keys(tmp_path: Path) -> None:
    assert planned(tmp_path, SMOKE) == json.loads((HERE / "smoke_keys.json").read_text())

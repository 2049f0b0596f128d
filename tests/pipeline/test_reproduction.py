"""`python -m pipeline.inspect reproduce KEY`: an artifact is built again beside the first, and what differs is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.configurations import configuration
from helpers.world import World, environment, make_world
from pipeline.engine import typed
from pipeline.engine.artifact import MANIFEST, Artifact
from pipeline.engine.reproduction import reproduce
from pipeline.engine.store import REPRODUCED
from pipeline.inspect import main
from pipeline.planning.build import build_graph
from pipeline.schema.overrides import groups
from stages.common.files import read_json, sha256_of, write_json
from stages.common.sealed import digest, sealed
from stages.errors import UserError
from stages.registry import STAGES

TINY = ("prune=random", "adapter=none", "evaluate=none")
WHOLE = ("recover.tokens=600", "recover.curve_every=300", "evaluate.limit=2", "export=hf")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.run(*TINY)
    return world


def again(world: World, artifact: Artifact) -> list[str]:
    with environment(world.environment):
        return reproduce(world.store, artifact, places={}, cache=world.root / "cache", device="cpu", threads=1)


def of(world: World, stage: str) -> Artifact:
    (artifact,) = world.store.artifacts(stage)
    return artifact


def rewritten(artifact: Artifact, change: Callable[[dict[str, Any]], Any], name: str) -> None:
    """Change a JSON file of an artifact, and make its manifest agree, as someone would who means to deceive."""
    path = artifact.path / name
    found = read_json(path)
    change(found)
    write_json(path, found)
    manifest = {key: value for key, value in artifact.manifest.items() if key != "seal"}
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest["digest"] = digest({name: file["sha256"] for name, file in manifest["files"].items()})
    write_json(artifact.path / MANIFEST, sealed(manifest))


@pytest.mark.parametrize("stage", ["model", "scores", "report"])
def test_an_artifact_is_built_again_with_the_same_content(world: World, stage: str) -> None:
    before = sorted(world.store.root.rglob("*"))
    assert again(world, of(world, stage)) == []
    after = [path for path in sorted(world.store.root.rglob("*")) if REPRODUCED not in str(path)]
    assert after == [path for path in before if REPRODUCED not in str(path)], "the store is as it was"
    assert list((world.store.root / REPRODUCED).iterdir()) == []


def test_what_was_changed_so_that_everything_agrees_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    world.run(*TINY)
    rewritten(of(world, "prune"), lambda record: record.__setitem__("ratio_achieved", 0.9), "model/pruning.json")
    assert main(["--root", str(world.store.root), "verify"]) == 0, "no hash gives it away"
    pruned, options = of(world, "prune"), ["--threads", "1", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    capsys.readouterr()
    with environment(world.environment):
        assert main(["--root", str(world.store.root), "reproduce", pruned.key[:12], *options]) == 1
        told = capsys.readouterr().out
        assert "model/pruning.json differs: ratio_achieved 0.9 →" in told
        assert main(["--root", str(world.store.root), "reproduce", of(world, "model").name, *options]) == 0
    assert "same content" in capsys.readouterr().out


def test_without_its_input_nothing_is_built_again(tmp_path: Path, world: World) -> None:
    scores = of(world, "scores")
    scores.manifest["input_digests"]["model"] = "0" * 64
    with pytest.raises(UserError, match="input 'model'.*is not in the store"):
        again(world, scores)


def test_an_artifact_of_another_version_is_not_built_again() -> None:
    payload = dict(build_graph(configuration()).roles["model"].payload) | {"version": 99}
    with pytest.raises(UserError, match="version 99 of the stage model"):
        typed.stage_and_config(payload)


def all_choices() -> list[tuple[str, ...]]:
    """Return command lines that together have every stage, and every kind of option that a key holds."""
    kinds = groups()
    prunes = [(f"prune={name}",) for name in kinds["prune"] if name not in ("none", "sheared")]
    adapters = [(f"adapter={name}",) for name in kinds["adapter"] if name != "none"]
    data = [(f"data={name}",) for name in ("general", "selfwritten", "best", "howto")]
    exports = [("export=gguf",), ("export=compressed",), ("prune=best", "prune.shapes=served", "export=decilm")]
    return [*prunes, *adapters, *data, *exports, ("recover.tune=lr",), ("recover=best",)]


def test_the_options_of_every_stage_are_read_back_from_a_manifest() -> None:
    seen = set()
    for words in all_choices():
        for node in build_graph(configuration(*words)):
            seen.add(node.stage.name)
            stage, config = typed.stage_and_config(json.loads(json.dumps(node.payload)))
            assert (stage, config) == (node.stage, node.config), words
    assert seen == set(STAGES)


@pytest.mark.faults
def test_every_artifact_of_a_whole_run_is_built_again_with_the_same_content(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.run(*WHOLE)
    found = {artifact.name: again(world, artifact) for artifact in world.store.artifacts()}
    assert len(found) >= 12
    assert {name: lines for name, lines in found.items() if lines} == {}

"""What a program does with `import pipeline`: the command's own work, by the command's own words."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
import stages
from helpers.world import ROOT, World, environment, make_world
from pipeline.schema.config import Config
from stages.adapters.config import AdapterConfig
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.model.config import ModelConfig
from stages.prune.criteria.magnitude import MagnitudeConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_run_from_python_is_the_run_of_the_command_line(world: World) -> None:
    overrides = world.arguments("prune=magnitude", "evaluate=none", "recover.tokens=600")
    with environment(world.environment):
        run = pipeline.run(*overrides, directory=world.root / "first")
    assert run.report == read_json(world.root / "first" / "report.json")
    assert run.model == run.artifacts["recover"] / "model"
    assert load_model(run.model, dtype="float32").num_parameters() == run.report["params"]["pruned"]
    assert run.store.root == world.root / "artifacts"
    status, printed = world.call("prune=magnitude", "evaluate=none", "recover.tokens=600")
    assert status == 0
    assert "built" not in printed, "the command finds every artifact that Python built"


def test_a_plan_from_python_builds_nothing_and_prints_what_the_command_prints(world: World) -> None:
    overrides = world.arguments("prune=wanda", "ratio=0.3", store="none")
    with environment(world.environment):
        plan = pipeline.plan(*overrides)
    assert not (world.root / "none").exists()
    assert plan.graph.roles["prune"].label == "wanda-local-r0.30"
    status, printed = world.call("prune=wanda", "ratio=0.3", "action=plan", store="none")
    assert status == 0
    assert str(plan) in printed


def test_a_recovery_that_leaves_an_adapter_says_how_its_model_is_loaded(world: World) -> None:
    overrides = world.arguments("prune=magnitude", "evaluate=none", "recover.tokens=600", "recover.merge=false")
    with environment(world.environment):
        run = pipeline.run(*overrides, directory=world.root / "apart")
    with pytest.raises(UserError, match="holds an adapter beside the pruned model"):
        assert run.model


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ration=0.3"], "did you mean"),
        (["ratio=0.2,0.5"], "is a sweep"),
        (["prune=nothing"], "unknown option"),
        (["adapter.rank=much"], "adapter"),
    ],
)
def test_a_mistaken_override_is_an_error_and_not_an_exit(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.compose(*overrides)


def test_a_run_that_should_only_plan_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="pipeline.plan"):
        pipeline.run(*world.arguments("action=plan"))


def test_overrides_and_a_config_are_one_too_many() -> None:
    with pytest.raises(TypeError, match="overrides or a config"):
        pipeline.plan("ratio=0.2", config=Config())


def test_the_ratio_of_a_configuration_made_in_python_is_the_one_that_is_planned() -> None:
    golden = ModelConfig(name="golden", kind="local", path=str(ROOT / "tests" / "golden" / "llmpruner"))
    config = Config(ratio=0.5, prune=MagnitudeConfig(), model=golden, adapter=AdapterConfig(name="none"))
    config.evaluate.protocol = "none"
    node = pipeline.plan(config=config).graph.roles["prune"]
    assert (node.label, node.config.ratio) == ("magnitude-golden-r0.50", 0.5)
    config.prune.ratio = 0.3
    assert pipeline.plan(config=config).graph.roles["prune"].config.ratio == 0.3, "a group's own ratio comes first"


def test_no_public_name_is_taken_by_a_submodule() -> None:
    for package in (pipeline, stages):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
        for name in package.__all__:
            assert callable(getattr(package, name)), f"{package.__name__}.{name}"
            assert name in dir(package)


@pytest.mark.parametrize("package", ["pipeline", "stages"])
def test_importing_it_loads_nothing_heavy(package: str) -> None:
    heavy = "{'torch', 'transformers', 'hydra', 'omegaconf', 'wandb', 'lm_eval'}"
    code = f"import sys, {package}; sys.exit(','.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'recove'"):
        pipeline.recove  # noqa: B018


def test_the_run_directory_is_a_new_one_unless_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = world.arguments("prune=none", "adapter=none", "evaluate=none")
    with environment(world.environment):
        runs = [pipeline.run(*overrides) for _ in range(2)]
    assert len({run.directory for run in runs}) == 2
    assert (tmp_path / "outputs" / "latest").resolve() == runs[1].directory
    assert runs[0].model == runs[0].artifacts["model"] / "model"
    (tmp_path / "outputs" / "latest").unlink()
    with environment(world.environment):
        named = pipeline.run(*overrides, directory="outputs/latest")
    assert named.directory == tmp_path / "outputs" / "latest"
    assert not named.directory.is_symlink()
    with pytest.raises(UserError, match="directory=DIR"):
        pipeline.run("hydra.run.dir=there")

"""What anyone may hand in as a model ends in a result or in one error, soon and in little memory."""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from pathlib import Path

import pytest

from faults import hostile
from helpers.world import World, make_world
from stages.errors import UserError

OPTIONS = ("prune=random", "adapter=none", "evaluate=none", "evaluate.generation_prompts=1")
SECONDS = 60
BYTES = 2 * 2**30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_weights_that_are_no_numbers_are_refused_though_nothing_measures_them(world: World, tmp_path: Path) -> None:
    directory = hostile.changed(world.root / "model", tmp_path / "model", hostile.MODELS["weights: NaN"])
    with pytest.raises(UserError, match="NaN or infinity"):
        world.run(*OPTIONS, f"model.path={directory}", store="nan")


@pytest.mark.parametrize(
    "case", [case if hostile.daily(case) else pytest.param(case, marks=pytest.mark.faults) for case in hostile.MODELS]
)
def test_a_hostile_model_ends_in_a_result_or_one_error(world: World, tmp_path: Path, case: str) -> None:
    directory = hostile.changed(world.root / "model", tmp_path / "model", hostile.MODELS[case])
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with suppress(UserError):
        world.run(*OPTIONS, f"model.path={directory}", store=f"store-{tmp_path.name}")
    assert not (tmp_path / "executed").exists()
    assert time.perf_counter() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES

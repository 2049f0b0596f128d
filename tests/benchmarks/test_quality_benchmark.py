"""The benchmark of time to quality, on a tiny model: what it says, never how fast or how good anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import exp, log
from pathlib import Path

import pytest

import pipeline
from benchmarks import road_plan
from benchmarks.courses import Point, after, averaged, best_of, compare, reaching, table
from benchmarks.parts import Parts
from benchmarks.quality import main
from benchmarks.road_plan import JUDGED, lineage, needs, planned
from benchmarks.roads import Clock
from helpers.world import ROOT, World, environment, make_world
from stages.common.files import read_json
from stages.data.plan import asks_model
from stages.errors import UserError
from stages.registry import STAGES
from stages.stage import JSON

OPTIONS = [
    "--ratios=0.2", "--tokens=8000", "--our-tokens=4000", "--tune-tokens=3000", "--every=2000", "--limit=2",
    "--rank=4", "--rates=1e-2,3e-2", "--threads=1",
]  # fmt: skip
ROAD = [
    "prune.calibration.data=null", "prune.calibration.sequences=4", "prune.calibration.length=32",
    "prune.compensate=least_squares", "prune.dtype=float32",
    "recover=standard", "recover.learning_rate=1e-2", "recover.objective=distillation",
    "adapter=rora", "adapter.rank=4", "data=commonsense",
]  # fmt: skip
"""The recommended road without the wheels that it reads."""


def course(*points: tuple[int, float, float]) -> list[Point]:
    """Return points of (tokens, seconds, perplexity)."""
    return [Point(tokens, seconds, log(perplexity), 2 * perplexity) for tokens, seconds, perplexity in points]


STOCK = course((0, 10, 90), (1000, 110, 40), (2000, 210, 36), (3000, 310, 38))
OURS = course((0, 60, 45), (1000, 105, 35), (2000, 150, 30))
DENSE = Point(0, 0.0, log(20), 24.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def overrides(world: World, *more: str) -> list[str]:
    """Return the overrides of a tiny road: those of the world that no option of the benchmark sets."""
    own = ("prune=", "ratio=", "runtime=", "evaluate.limit", "evaluate.passages", "runtime.threads")
    return [*ROAD, *(given for given in world.arguments(*more) if not given.startswith(own))]


@pytest.fixture(scope="module")
def result(world: World) -> JSON:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", *OPTIONS, "--folder", str(world.root / "q"), *overrides(world)],
        cwd=ROOT,
        env=os.environ | world.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: JSON = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_last_line_has_the_figures_of_both_roads(result: JSON, world: World) -> None:
    figures = result["ratios"]["20"]
    stock, ours, best = figures["stock"], figures["ours"], figures["stock_best"]
    assert ours[0]["tokens"] == stock[0]["tokens"] == 0
    assert ours[-1]["tokens"] >= 4000
    assert 4000 < stock[-1]["tokens"] <= 8256
    assert best["perplexity"] == min(at["perplexity"] for at in stock)
    first = next((at for at in ours if at["perplexity"] <= best["perplexity"]), None)
    expected = None if first is None else pytest.approx(first["seconds"] / best["seconds"])
    assert result["time_to_stock_quality_ratio_20"] == expected
    dense = sum(result["dense"][kind]["nll"] / result["dense"][kind]["tokens"] for kind in JUDGED) / len(JUDGED)
    assert result["log_perplexity_recovered_20"] == pytest.approx(log(ours[-1]["perplexity"]) - dense)
    assert result["passages_perplexity_20"]["dense"] == result["dense"]["wikipedia"]["perplexity"]
    assert figures["tuning"]["learning_rate"] in (1e-2, 3e-2)
    for road in (stock, ours):
        assert [at["seconds"] for at in road] == sorted(at["seconds"] for at in road)
        assert road[-1]["perplexity"] < road[0]["perplexity"], "a road that learns nothing measures nothing"
    (folder,) = (world.root / "q").iterdir()
    assert read_json(folder / "result.json") == result
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_ours_is_as_good_at_its_first_measurement_at_or_below_the_stock_roads_best() -> None:
    found = compare(DENSE, STOCK, OURS)
    assert found["time_to_stock_quality_ratio"] == 105 / 210
    assert found["log_perplexity_recovered"] == pytest.approx(log(30 / 20))
    assert not found["cut_is_enough"]
    assert found["passages_perplexity"]["ours_recovered"] == 60


def test_a_cut_that_is_better_than_the_stock_road_ever_is_is_enough() -> None:
    found = compare(DENSE, STOCK, course((0, 60, 36), (1000, 105, 30)))
    assert found["cut_is_enough"]
    assert found["time_to_stock_quality_ratio"] == 60 / 210


def test_where_ours_is_never_as_good_there_is_no_ratio() -> None:
    worse = course((0, 60, 50), (1000, 105, 37))
    assert compare(DENSE, STOCK, worse)["time_to_stock_quality_ratio"] is None
    assert "never" in table("20", DENSE, STOCK, worse)


def test_after_equal_seconds_a_road_has_its_best_model_so_far_or_none() -> None:
    assert after(STOCK, 9.0) is None
    assert after(STOCK, 400.0) == best_of(STOCK) == STOCK[2]
    assert reaching(STOCK, log(20)) is None
    moments = {at["seconds"]: (at["stock"], at["ours"]) for at in compare(DENSE, STOCK, OURS)["equal_seconds"]}
    assert set(moments) == {60, 150, 210, 310}
    assert moments[150] == (pytest.approx(40), pytest.approx(30))


def test_rounds_are_averaged_point_by_point() -> None:
    (mean,) = averaged([course((0, 10, 20)), course((0, 30, 80))])
    assert mean.seconds == 20
    assert exp(mean.nats) == pytest.approx(40)


def test_a_clock_leaves_out_what_it_is_stopped_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("benchmarks.roads.time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] += 5
    with clock.stopped():
        now[0] += 1000
    now[0] += 2
    assert clock.seconds() == 7


def test_a_stopped_run_goes_on_with_the_part_that_was_stopped(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(folder: Path) -> JSON:
        calls.append(folder.name)
        assert not list(folder.iterdir()), "a part begins in an empty folder"
        (folder / "half").touch()
        if calls == ["first", "second"]:
            raise KeyboardInterrupt
        return {"number": len(calls)}

    parts = Parts(tmp_path)
    assert parts.part("first", work) == {"number": 1}
    with pytest.raises(KeyboardInterrupt):
        parts.part("second", work)
    again = Parts(tmp_path)
    assert again.finished() == 1
    assert again.part("first", work) == {"number": 1}
    assert again.part("second", work) == {"number": 3}
    assert calls == ["first", "second", "second"]
    again.close({"all": 3})
    assert Parts(tmp_path).finished() == 0


def test_our_road_is_the_recommended_one_and_the_stock_cut_llm_pruners_own() -> None:
    ours = pipeline.compose(*road_plan.OURS)
    stock = pipeline.compose(*road_plan.OURS, *road_plan.STOCK)
    assert (ours.prune.method, ours.prune.compensate) == ("surgeon", "sequential")
    assert (ours.data.name, ours.recover.objective) == ("best", "distillation")
    calibration = stock.prune.calibration
    assert (stock.prune.method, stock.prune.allocation, stock.prune.compensate) == ("llmpruner", "paper", "none")
    assert (calibration.sequences, calibration.length, calibration.data) == (10, 64, None)
    assert stock.data == ours.data


def test_what_needs_the_dense_model_counts_and_the_stock_road_reads_no_row_that_it_wrote(world: World) -> None:
    given = overrides(world)
    given = ["data=selfwritten" if word == "data=commonsense" else word for word in given]
    given = [word for word in given if not word.startswith("data.wheel")]
    with environment(world.environment):
        plan = planned(0.2, given, "cpu")
    data = plan.recovery.inputs["data"]
    assert asks_model(data.config)
    assert needs(data, plan.model)
    assert not needs(plan.rows, plan.model)
    assert plan.rows.key == next(node for node in data.inputs.values() if node.stage is STAGES["data"]).key
    assert plan.stock.config.method == "llmpruner"
    assert plan.stock.config.allocation == "paper"
    written = [node for node in lineage(plan.stock) if node.stage is STAGES["data"] and asks_model(node.config)]
    assert written == []


def test_the_stock_road_has_the_recommended_rows_in_their_proportions_without_what_the_dense_model_makes_up() -> None:
    plan = planned(0.2, [], "cpu")
    ours = plan.recovery.inputs["data"]
    assert "sampled" in ours.inputs
    assert needs(ours, plan.model)
    assert plan.rows.config.parts == pytest.approx({"commonsense": 0.25, "howto": 0.25, "passages": 0.5})
    assert {name: node.key for name, node in plan.rows.inputs.items()} == {
        name: node.key for name, node in ours.inputs.items() if name != "sampled"
    }
    for node in (plan.rows, plan.stock):
        assert not [each for each in lineage(node) if each.stage is STAGES["data"] and asks_model(each.config)]
        assert all(plan.engine.graph.role_of(each) for each in lineage(node)), "the engine builds what has a role"
    with pytest.raises(UserError, match="no text that the dense model makes up, and there is no other"):
        planned(0.2, ["data=sampled"], "cpu")


@pytest.mark.parametrize(("given", "said"), [("adapter=none", "adapter=none"), ("recover.tune=lr", "recover.tune")])
def test_what_leaves_nothing_to_compare_is_one_line(
    world: World, capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    words = [word for word in overrides(world) if not word.startswith("adapter")]
    with environment(world.environment), pytest.raises(SystemExit, match=f"error: .*{said}"):
        main([*OPTIONS, f"--folder={world.root / 'none'}", *words, given])
    assert capsys.readouterr().out == ""

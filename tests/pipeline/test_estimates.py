"""What a run says of its time: counted from shapes, measured once, and learnt from earlier artifacts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helpers.configurations import configuration
from helpers.world import World, environment, make_world
from pipeline.engine import estimates
from pipeline.engine.estimates import about, estimate, timing
from pipeline.engine.store import Store
from pipeline.engine.unfinished import begin
from pipeline.execution import plan
from pipeline.planning import speed
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph, Node
from pipeline.planning.preview import preview
from pipeline.planning.settled import cache_directory
from pipeline.planning.speed import FILE, Speed, known, machine_name
from pipeline.planning.work import model_shapes, works
from stages.common.files import read_json, write_json
from stages.decoders.work import Work

BEST = ["prune=best", "adapter=best", "runtime=cpu", "recover.dtype=float32", "evaluate.dtype=float32"]


def counted(*overrides: str) -> tuple[Graph, dict[str, float]]:
    """Return the plan of a command line on the default model, and the operations of its stages by role."""
    config = configuration(*BEST, *overrides)
    graph = build_graph(config)
    found = works(graph, model_shapes(config, graph, lambda node: Path("nowhere")), preview(config, graph, None))
    return graph, {role: found[node.key].total for role, node in graph.roles.items() if node.key in found}


@pytest.mark.parametrize(
    ("option", "role"),
    [
        ("recover.tokens=240000", "recover"),
        ("recover.objective=distillation", "recover"),
        ("recover.gradient_checkpointing=true", "recover"),
        ("adapter=full", "recover"),
        ("evaluate.limit=400", "evaluate-dense"),
        ("evaluate.limit=null", "evaluate-pruned"),
        ("evaluate=generation", "evaluate-recovered"),
        ("evaluate.passages=6400", "evaluate-dense"),
        ("evaluate.corpora=[wikitext2]", "evaluate-dense"),
        ("prune.calibration.sequences=256", "scores"),
        ("prune.search.trials=9", "prune"),
        ("prune.steps=4", "prune"),
    ],
)
def test_more_work_is_counted_as_more(option: str, role: str) -> None:
    before, after = counted()[1][role], counted(option)[1][role]
    assert after > 1.1 * before


def test_a_recovery_of_four_times_the_tokens_takes_four_times_the_work_but_for_the_curve() -> None:
    once, four = (
        counted(f"recover.tokens={tokens}", "recover.curve_every=1000000")[1]["recover"] for tokens in (20_000, 80_000)
    )
    assert 3 < four / once <= 4


def test_rows_that_a_model_writes_are_counted_by_their_tokens_as_far_as_a_budget_lets_them_be_written() -> None:
    once, twice, short = (
        counted("data=sampled", "data.dtype=float32", f"data.rows={rows}", f"data.new_tokens={new}")[1]["data"]
        for rows, new in ((128, 256), (256, 256), (128, 64))
    )
    assert twice == pytest.approx(2 * once)
    assert short == pytest.approx(once / 4)
    assert counted("data=best", "+data.parts.sampled.dtype=float32")[1]["data-sampled"] == pytest.approx(once)
    whole, few = (counted("data=selfwritten", f"data.tokens={tokens}")[1]["data"] for tokens in ("null", 1000))
    assert 0 < few < whole / 10
    assert "data" not in counted("data=passages")[1]


def test_what_was_measured_of_rows_that_a_model_writes_is_foretold() -> None:
    # 38 seconds of one core (docs/data_and_recovery.md). The core's rate of products was 4.96e11 a second.
    config = configuration(*BEST, "data=sampled", "data.rows=64", "data.dtype=bfloat16")
    graph = build_graph(config)
    found = works(graph, model_shapes(config, graph, lambda node: Path("nowhere")), None)
    assert found[graph.roles["data"].key].seconds({"bfloat16": 4.96e11}) == pytest.approx(38, rel=0.1)


def test_less_is_left_to_do_where_more_is_pruned() -> None:
    mild, hard = (counted(f"ratio={ratio}")[1] for ratio in (0.2, 0.5))
    assert hard["evaluate-pruned"] < mild["evaluate-pruned"] < mild["evaluate-dense"] == hard["evaluate-dense"]
    assert hard["recover"] < mild["recover"]


def test_a_known_outcome_of_pruning_gives_the_work_of_its_shape() -> None:
    _, uniform = counted("prune=magnitude", "prune.allocation=uniform", "ratio=0.3")
    _, guessed = counted("ratio=0.3")
    assert uniform["evaluate-pruned"] == pytest.approx(guessed["evaluate-pruned"], rel=0.1)


def test_criteria_that_try_layers_one_by_one_count_every_try() -> None:
    assert counted("prune=perplexity")[1]["scores"] > 10 * counted("prune=block_influence")[1]["scores"]
    assert counted("prune=2ssp", "ratio=0.3")[1]["prune"] > 5 * counted("prune=wanda", "ratio=0.3")[1]["prune"]


def test_every_option_of_pruning_and_of_the_adapters_has_its_work_counted() -> None:
    from stages.adapters.registry import ADAPTERS
    from stages.prune.registry import METHODS

    for method in METHODS:
        assert "evaluate-dense" in counted(f"prune={method}")[1]
    for adapter in ADAPTERS:
        assert counted(f"adapter={adapter}")[1]["recover"] > 0


def test_where_the_shape_of_a_model_is_not_known_nothing_is_counted() -> None:
    _, found = counted("model.shape=null")
    assert found == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "seconds"), (31, "about 40 s"), (58, "about 1 min"), (170, "about 3 min"), (7200, "about 2.0 h")],
)
def test_a_time_is_told_no_finer_than_it_is_known(seconds: float, words: str) -> None:
    assert about(seconds) == words


# One machine's speed.


def test_the_machine_is_measured_once_and_the_rate_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    first = known(tmp_path, None)
    assert first.rates == {}
    measured = first.measured(["float32"], None)
    assert measured.rates["float32"] > 1e6
    again = known(tmp_path, None)
    assert again.rates == measured.rates
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("measured again"))
    assert again.measured(["float32"], None) is again


def test_a_rate_belongs_to_a_number_of_threads(tmp_path: Path) -> None:
    write_json(tmp_path / FILE, {machine_name(1): {"float32": 1e9}, machine_name(2): {"float32": 2e9}})
    assert known(tmp_path, 2).rates == {"float32": 2e9}
    assert known(tmp_path, 3).rates == {}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "\udcff", '{"MACHINE": {"float32": 0}}', '{"MACHINE": {"float32": "fast"}}', '{"MACHINE": [3]}'],
)
def test_a_damaged_file_is_ignored_with_one_line_and_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_: 5e9)
    text = content.replace("MACHINE", machine_name(None))
    (tmp_path / FILE).write_bytes(text.encode(errors="surrogateescape"))
    with caplog.at_level(logging.INFO, logger="pipeline"):
        found = known(tmp_path, None)
    assert found.rates == {}
    assert len(caplog.messages) == 1
    assert str(tmp_path / FILE) in caplog.messages[0]
    found.measured(["float32"], None)
    assert known(tmp_path, None).rates == {"float32": 5e9}


def test_a_cache_that_cant_be_written_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_: 5e9)
    (tmp_path / "file").write_text("")
    assert Speed(tmp_path / "file" / FILE, "m", {}).measured(["float32"], None).rates == {"float32": 5e9}


# Seconds, from a speed or from earlier artifacts.


def work(operations: float, kind: str = "k") -> Work:
    return Work(operations={"float32": operations}, efficiency=0.5, kind=kind)


def committed(store: Store, node: Node, kept: dict[str, object]) -> None:
    """Leave an artifact of `node` in the store whose manifest has the timing `kept`."""
    partial = store.partial(node.stage.name, node.label, node.key)
    begin(partial, {}, None)
    final = store.directory(node.stage.name, node.label, node.key)
    store.commit(
        partial, final, label=node.label, payload=node.payload, inputs={}, summary={}, provenance={}, timing=kept
    )


@pytest.fixture
def nodes() -> tuple[Node, Node]:
    """Return two recoveries with keys of their own."""
    one, other = (counted(f"recover.seed={seed}")[0].roles["recover"] for seed in (0, 1))
    return one, other


def test_seconds_are_operations_over_rate_and_efficiency(tmp_path: Path, nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    at = Speed(tmp_path / FILE, "m", {"float32": 1e11})
    expected = estimate([node], {node.key: work(3e12)}, Store(tmp_path), at)
    assert expected.seconds == {node.key: pytest.approx(60.0)}
    assert not expected.unknown


def test_what_takes_seconds_anywhere_needs_no_measuring(tmp_path: Path, nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    slow = Speed(tmp_path / FILE, "m", {})
    assert estimate([node], {node.key: work(1e9)}, Store(tmp_path), slow).unknown == frozenset()
    assert estimate([node], {node.key: work(1e14)}, Store(tmp_path), slow).unknown == {"float32"}
    assert estimate([], {node.key: work(1e14)}, Store(tmp_path), slow).unknown == frozenset()


def test_an_earlier_artifact_of_the_machine_is_believed_before_its_speed(
    tmp_path: Path, nodes: tuple[Node, Node]
) -> None:
    node, other = nodes
    store, at = Store(tmp_path), Speed(tmp_path / FILE, "m", {"float32": 1e11})
    committed(store, other, timing(work(2e12), "m", 500.0))
    assert estimate([node], {node.key: work(4e12)}, store, at).seconds[node.key] == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("earlier", "machine"),
    [(work(2e12), "another machine"), (work(2e12, "another method"), "m"), (work(2e10), "m")],
)
def test_what_is_not_alike_is_no_measure(tmp_path: Path, nodes: tuple[Node, Node], earlier: Work, machine: str) -> None:
    node, other = nodes
    store, at = Store(tmp_path), Speed(tmp_path / FILE, "m", {"float32": 1e11})
    committed(store, other, timing(earlier, machine, 500.0))
    assert estimate([node], {node.key: work(4e12)}, store, at).seconds[node.key] == pytest.approx(80.0)


# Whole runs.


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a tiny world in which every stage counts as long."""
    monkeypatch.setattr(estimates, "WORTH_MEASURING", 0.0)
    return make_world(tmp_path)


RUN = ["prune=magnitude", "evaluate=none", "recover.tokens=600"]


def test_a_plan_measures_nothing_and_shows_what_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("a plan measures"))
    config = world.config(*RUN)
    with environment(world.environment):
        silent = plan(config)
        cache = silent.engine.cache
        assert "in all on this machine" not in silent.text
        write_json(cache / FILE, {machine_name(config.runtime.threads): {"float32": 1e3, "bfloat16": 1e3}})
        told = plan(config)
    assert "in all on this machine" in told.text
    assert " h " in told.text
    assert [node.key for node in told.graph] == [node.key for node in silent.graph]


def test_a_run_measures_once_before_its_first_stage_and_keeps_time_with_artifacts(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured: list[str] = []

    def measure(dtype: str, threads: int | None) -> float:
        assert not list(world.root.glob("artifacts/*/*")), "a stage was begun"
        measured.append(dtype)
        return 1e10

    monkeypatch.setattr(speed, "measure", measure)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        world.run(*RUN)
    assert measured
    assert len(set(measured)) == len(measured)
    assert any("in all on this machine" in message for message in caplog.messages)
    kept = read_json(world.artifact("recover", *RUN) / "manifest.json")["timing"]
    assert kept["seconds"] > 0
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("measured again"))
    world.run(*RUN, "ratio=0.3")
    assert "timing" not in read_json(world.artifact("model", *RUN) / "manifest.json")


def test_a_run_of_hits_measures_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_: 1e10)
    world.run(*RUN)
    (cache_directory(world.config(*RUN)) / FILE).unlink()
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("nothing is to be built"))
    world.run(*RUN)

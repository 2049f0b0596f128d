"""The last lines of a run on the terminal: where its model lies, and what `prune=best` gave or how to get it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from helpers.configurations import configuration
from helpers.world import make_world
from pipeline.closing import closing
from pipeline.engine.store import Store
from pipeline.engine.unfinished import begin
from pipeline.planning.build import build_graph
from stages.common.files import write_json

COMMAND = "python -m pipeline ratio=0.5 adapter=rora"


def report(pruned: float, recovered: float, over: list[str] | None = None) -> dict[str, Any]:
    """Return as much of a report as the line reads: perplexities of passages, and ten times as much as the mean."""
    mean = {"pruned": 10 * pruned, "recovered": 10 * recovered, "over": over} if over else None
    return {
        "texts": {"kinds": {"wikipedia": {"pruned": pruned, "recovered": recovered}}, "mean": mean},
        "mean": None,
        "params": {},
        "corpora": [],
        "recovery": {"retained": None, "recovered": None},
    }


JUDGED_REPORT = report(500.0, 90.0)


def line(*overrides: str, command: str = COMMAND, of: dict[str, Any] = JUDGED_REPORT) -> str:
    return closing(configuration(*overrides), Store(Path("nowhere")), of, command)


def test_without_such_a_run_the_line_is_the_command_that_makes_one() -> None:
    assert line("ratio=0.5", "prune=llmpruner") == (
        "the same command with prune=best keeps more: python -m pipeline prune=best ratio=0.5 adapter=rora"
    )


def test_the_command_keeps_the_budget_and_loses_the_options_of_the_other_criterion() -> None:
    asked = "python -m pipeline prune=llmpruner prune.taylor=vectorize prune.ratio=0.3 'evaluate.tasks=[piqa, boolq]'"
    said = line("prune.taylor=vectorize", "prune.ratio=0.3", command=asked)
    assert said.endswith(": python -m pipeline prune=best prune.ratio=0.3 'evaluate.tasks=[piqa, boolq]'")


@pytest.mark.parametrize("command", ["python -m pipeline -m ratio=0.2,0.5", "test"])
def test_a_sweep_and_a_program_get_no_command_to_copy(command: str) -> None:
    assert line(command=command) == "the same command with prune=best keeps more"


@pytest.mark.parametrize(
    "overrides",
    [
        ["prune=best"],
        ["prune=surgeon", "prune.compensate=none"],
        ["prune=none"],
        ["prune=sparseml", "ratio=0.5"],
        ["prune.channel_ratio=0.3"],
    ],
)
def test_a_run_that_has_nothing_to_compare_with_ends_as_it_did(overrides: list[str]) -> None:
    assert line(*overrides) == ""


def test_where_no_text_was_judged_there_is_no_line() -> None:
    assert line(of={"texts": None}) == ""


def reported(store: Store, of: dict[str, Any], *overrides: str) -> None:
    """Leave the report `of` in the store, as a run of these overrides would."""
    node = build_graph(configuration(*overrides)).roles["report"]
    partial = store.partial("report", node.label, node.key)
    begin(partial, {}, None)
    write_json(partial / "report.json", of)
    final = store.directory("report", node.label, node.key)
    store.commit(partial, final, label=node.label, payload=node.payload, inputs={}, summary={}, provenance={})


def test_where_the_store_has_such_a_run_the_line_has_both_perplexities(tmp_path: Path) -> None:
    store, same = Store(tmp_path), ["ratio=0.5", "recover.tokens=30000"]
    reported(store, report(60.0, 31.5), "prune=best", *same)
    said = closing(configuration(*same, "prune=wanda"), store, JUDGED_REPORT, COMMAND)
    assert said == "prune=best in the same run has a held-out perplexity of 31.5; here it is 90.0"


def test_the_mean_over_kinds_is_told_where_both_runs_have_the_same(tmp_path: Path) -> None:
    reported(Store(tmp_path), report(60.0, 31.5, ["news", "papers"]), "prune=best")
    said = [
        closing(configuration(), Store(tmp_path), report(500.0, 90.0, over), COMMAND)
        for over in (["news", "papers"], ["news"])
    ]
    assert said == [
        "prune=best in the same run has a mean held-out perplexity of 315.0; here it is 900.0",
        "prune=best in the same run has a held-out perplexity of 31.5; here it is 90.0",
    ]


@pytest.mark.parametrize(
    "other", ["ratio=0.2", "recover.tokens=40000", "evaluate.passages=3", "adapter=lora", "seed=1"]
)
def test_a_run_that_differs_in_more_than_the_criterion_is_no_comparison(tmp_path: Path, other: str) -> None:
    store, same = Store(tmp_path), ["ratio=0.5", "recover.tokens=30000"]
    reported(store, JUDGED_REPORT, "prune=best", *same)
    assert "keeps more" in closing(configuration(*same, other), store, JUDGED_REPORT, COMMAND)


def test_the_line_ends_the_run_and_is_in_no_artifact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(tmp_path)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        world.run("prune=magnitude", "adapter=none", "evaluate.limit=2", "evaluate.cost.repeats=1")
    assert caplog.messages[-1] == "the same command with prune=best keeps more"
    model = world.artifact("prune", "prune=magnitude", "adapter=none") / "model"
    assert caplog.messages[-2] == f"model: {model}"
    assert (model / "config.json").is_file()
    written = [path for path in (tmp_path / "artifacts").rglob("*.*") if path.suffix in (".json", ".md", ".html")]
    assert written
    assert not [path for path in written if "keeps more" in path.read_text()]

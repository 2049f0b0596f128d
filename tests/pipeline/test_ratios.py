"""Held-out perplexity by how much was removed, from the reports of a store."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import SKILL, add, evaluation, everything
from pipeline.compare import main
from pipeline.comparison.ratios import judged_alike, prunings, table
from stages.common.files import read_json, write_json
from stages.report.blocks import Page, markdown
from stages.stage import JSON

KINDS = ("narrative", "news")
DENSE = 25.0


def report(ratio: float, pruned: float, recovered: float | None = None, **changes: Any) -> JSON:
    """Return what is read of a report. `changes` are entries of it; options of pruning and recovery have their own."""
    figures = {"dense": DENSE, "pruned": pruned, "recovered": recovered}
    mean: JSON = {model: value for model, value in figures.items() if value is not None}
    mean |= {"intervals": {model: [0.9 * value, 1.1 * value] for model, value in mean.items()}, "over": list(KINDS)}
    kinds = {kind: {"label": kind, "sha256": kind, "documents": 48} for kind in KINDS}
    prune, recover = changes.pop("prune_options", {}), changes.pop("recover_options", {})
    adapter = {"name": "lora", "rank": 8, "alpha": 16.0}
    configuration: JSON = {"prune": {"method": "llmpruner", "ratio": ratio, "steps": 1, "seed": 5} | prune}
    if recovered is not None:
        configuration |= {"data": {"name": "rows"}}
        configuration |= {"recover": {"adapter": adapter, "recover": {"tokens": 100} | recover, "seed": 7}}
    return {
        "model": "tiny",
        "prune": "llmpruner",
        "adapter": "none" if recovered is None else "lora",
        "data": "rows",
        "params": {"ratio_requested": ratio, "ratio_achieved": ratio - 0.001},
        "texts": {"kinds": kinds, "mean": mean},
        "training": {},
        "configuration": configuration,
    } | changes


def rows_of(*found: JSON) -> list[str]:
    (group,) = judged_alike(found)
    return [line for line in markdown(Page("", [table(group)])).splitlines() if line.startswith("| prune=")]


def test_each_recovery_and_size_is_a_row_with_its_intervals_and_a_run_that_was_only_pruned_is_one_too() -> None:
    half = report(0.5, 600.0, 160.0, prune_options={"steps": 2})
    alone = report(0.2, 50.0, prune="2ssp", configuration={"prune": {"method": "2ssp", "ratio": 0.2}})
    assert rows_of(half, alone, report(0.2, 90.0, 45.0)) == [
        "| prune=2ssp | 19.9\u00a0% | 50.0 [45.0, 55.0] | – | 2.00× |",
        "| prune=llmpruner, lora r8, data=rows | 19.9\u00a0% | 90.0 [81.0, 99.0] | 45.0 [40.5, 49.5] | 1.80× |",
        "| prune=llmpruner, lora r8, data=rows | 49.9\u00a0% | 600.0 [540.0, 660.0] | 160.0 [144.0, 176.0] | 6.40× |",
    ]


def test_a_pruned_model_that_was_recovered_too_is_no_row_of_its_own_but_lies_on_the_line() -> None:
    calibrated = report(0.3, 120.0)
    calibrated["configuration"]["calibration"] = {"name": "rows"}
    found = [report(0.2, 90.0, 45.0), calibrated, report(0.2, 90.0, 45.0, data="other")]
    assert [row.split("|")[1].strip() for row in rows_of(*found)] == [
        "prune=llmpruner, lora r8, data=other",
        "prune=llmpruner, lora r8, data=rows",
        "prune=llmpruner",
    ]
    (pruning,) = prunings(found)
    assert [point.perplexity for point in pruning.pruned.values()] == pytest.approx([90.0, 120.0])


def test_runs_that_differ_only_in_seeds_are_one_point_and_a_run_reported_twice_counts_once() -> None:
    first, second = report(0.2, 90.0, 40.0), report(0.2, 90.0, 10.0)
    second["configuration"]["recover"]["seed"] = 8
    (row,) = rows_of(first, second, copy.deepcopy(second))
    assert "| 20.0 [9.00, 44.0] | 0.80× |" in row


def test_what_else_sets_lines_of_one_name_apart_is_said() -> None:
    found = [report(0.2, 90.0, 45.0), report(0.2, 90.0, 40.0, recover_options={"tokens": 900})]
    assert [re.findall(r"\(.*?\)", row) for row in rows_of(*found)] == [
        ["(recover.tokens=100)"],
        ["(recover.tokens=900)"],
    ]
    cut = [report(0.2, 90.0, 45.0), report(0.2, 80.0, 44.0, prune_options={"allocation": "uniform"})]
    assert [row.split("|")[1].strip() for row in rows_of(*cut)] == [
        "prune=llmpruner (prune.allocation=null), lora r8, data=rows",
        "prune=llmpruner (prune.allocation=uniform), lora r8, data=rows",
    ]


def test_the_recommended_pruning_has_the_name_that_the_command_line_has_for_it() -> None:
    best = {"granularity": ["heads", "queries", "channels", "attention", "mlp"], "allocation": "searched"}
    best |= {"method": "surgeon", "compensate": "sequential"}
    for sequences, name in ((192, "prune=best"), (64, "prune=surgeon")):
        options = best | {"calibration": {"sequences": sequences, "length": 256}}
        (row,) = rows_of(report(0.2, 40.0, 30.0, prune="surgeon", prune_options=options))
        assert row.startswith(f"| {name}, lora r8, data=rows |")


def test_other_texts_and_other_models_have_tables_of_their_own() -> None:
    longer = report(0.2, 90.0)
    longer["texts"]["kinds"]["news"]["documents"] = 96
    found = [longer, report(0.2, 90.0, model="other"), report(0.2, 90.0, 45.0), report(0.5, 600.0, 160.0)]
    assert [len(group) for group in judged_alike(found)] == [2, 1, 1]


def test_what_removed_nothing_or_was_not_judged_on_such_text_is_left_out() -> None:
    masked, unjudged, apart = (report(0.5, 90.0) for _ in range(3))
    masked["params"]["ratio_achieved"] = 0.0
    unjudged["texts"] = None
    apart["texts"]["mean"] = None
    assert len(judged_alike([masked, unjudged, apart, report(0.2, 90.0)])[0]) == 1
    assert not judged_alike([masked, unjudged, apart])


def test_the_picture_has_a_line_for_each_pruning_and_each_recovery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, root = everything(tmp_path / "inputs"), tmp_path / "artifacts"
    add(root, 0, inputs)
    smaller = evaluation(tmp_path / "pruned", **SKILL["pruned"] | {"nll": 6.0})
    cut = read_json(inputs["prune"] / "model" / "pruning.json")
    cut["parameters"]["pruned"] = 40_000_000
    write_json(tmp_path / "cut" / "model" / "pruning.json", cut)
    kept = {name: path for name, path in inputs.items() if name not in ("cost", "recovered", "recover")}
    add(root, 1, kept | {"pruned": smaller, "prune": tmp_path / "cut"}, adapter="none", ratio=0.7)

    main([f"artifact_root={root}", "format=md"])
    printed = capsys.readouterr().out
    assert [row.split("|")[2].strip() for row in printed.splitlines() if row.startswith("| prune=")] == [
        "50.0\u00a0%",
        "70.3\u00a0%",
    ]
    assert "held-out text (narrative and news; 30 documents of each)" in printed
    main([f"artifact_root={root}", "format=svg", "chart=ratios", f"output={tmp_path / 'deep' / 'ratios.svg'}"])
    drawn = (tmp_path / "deep" / "ratios.svg").read_text()
    names = ("prune=llmpruner, before recovery", "prune=llmpruner, rora r16, data=commonsense")
    for said in (*names, "parameters removed", "Held-out perplexity", "50 %", "70 %"):
        assert said in drawn

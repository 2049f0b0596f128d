from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.configurations import configuration
from helpers.world import make_world
from pipeline.compare import main
from pipeline.comparison.ranks import Outcome, note, points, sweeps, table
from pipeline.comparison.run import Run
from pipeline.planning.build import build_graph
from stages.report.blocks import Page, markdown

TINY = (
    "experiment=rank_sweep",
    "prune=magnitude",
    "ratio=0.2",
    "recover.seed=1",
    "adapter.rank=2",
    "recover.tokens=500",
    "recover.tune_factors=[1,10]",
    "recover.tune=lr",
    "recover.tune_tokens=null",
    "recover.tune_seed=null",
    "recover.validation_tokens=256",
    "recover.test_tokens=256",
)


def test_a_sweep_goes_on_from_the_cells_it_has_and_reads_as_a_table_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    world.run(*TINY, "adapter=lora")
    status, printed = world.call("-m", *TINY, "adapter=lora,rora")
    assert status == 0, printed
    built = re.findall(r"built +(\w+)/(\w+)", printed)
    assert built == [(stage, "rora") for stage in ("trial", "trial", "tune", "report")]

    store = f"artifact_root={tmp_path / 'artifacts'}"
    main([store, "format=md"])
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| (lora|rora) \| 2 \|", line)]
    assert [row.split("|")[1:4] for row in rows] == [[f" {adapter} ", " 2 ", " 1 "] for adapter in ("lora", "rora")]
    assert all(re.search(r"\d\d.* \| .*\d\d.* \| 0\.0", row) for row in rows)
    figure = tmp_path / "docs" / "sweep.svg"
    main([store, "format=svg", "chart=ranks", f"output={figure}"])
    said = ("lora", "rora", "Test perplexity, one rate for all", "each at its own rate", "The rate found")
    assert all(name in figure.read_text() for name in said)


def test_the_seed_of_a_cell_is_the_recoverys_alone() -> None:
    one, other = (build_graph(configuration("experiment=rank_sweep", f"recover.seed={seed}")) for seed in (0, 1))
    assert {role for role in one.roles if one.roles[role].key == other.roles[role].key} == {
        "model",
        "data",
        "scores",
        "prune",
    }


def recovery(
    adapter: str, rank: int, seed: int, *, shared: float | None, tuned: float, budget: int = 5000, **other: Any
) -> Run:
    """Return a report of a recovery at 0.1 (shared) and 0.2, where the second was chosen."""
    trials = [
        {"learning_rate": rate, "test": {"perplexity": value}, "diverged": None if value else {"step": 1, "tokens": 0}}
        for rate, value in ((0.1, shared), (0.2, tuned))
    ]
    recover = {"loss": "all", "tokens": 5000, "learning_rate": 0.1} | other
    settings = {"name": adapter, "rank": rank, "alpha": 16.0, "dropout": 0.0, "targets": ["q_proj"]}
    return Run(
        number=1,
        name=f"{adapter}-{rank}-{seed}",
        key="",
        directory=Path(),
        report={
            "model": "tiny",
            "prune": "magnitude",
            "params": {"ratio_achieved": 0.3},
            "data": "rows",
            "configuration": {"recover": {"adapter": settings, "recover": recover, "dtype": "float32", "seed": seed}},
            "training": {
                "test": {"perplexity": tuned, "rows": 40},
                "tuning": {"trials": trials, "shared": 0.1, "chosen": 0.2, "budget": budget},
            },
        },
    )


def test_cells_are_means_over_seeds_of_test_rows_at_the_shared_and_the_tuned_rate() -> None:
    found = [
        recovery("lora", 4, 0, shared=30.0, tuned=20.0),
        recovery("lora", 4, 1, shared=40.0, tuned=22.0),
        recovery("rora", 4, 0, shared=None, tuned=21.0),
        recovery("lora", 8, 0, shared=30.0, tuned=20.0, tokens=1),
    ]
    ((report, cells),) = sweeps(found)
    assert cells["lora", 4][1] == Outcome(shared=40.0, tuned=22.0, rate=0.2)
    text = markdown(Page("", [table(cells)]))
    assert "| lora | 4 | 2 | 35.0 ± 5 | 21.0 ± 1 | 0.2 |" in text
    assert "| rora | 4 | 1 | diverged | 21.0 | 0.2 |" in text
    assert "5,000 tokens of rows each" in note(report)
    drawn = {(point["adapter"], point["at"]): (point["value"], point["low"], point["high"]) for point in points(cells)}
    assert drawn["lora", "tuned"] == (21.0, 20.0, 22.0)
    assert ("rora", "shared") not in drawn, "what diverged at the shared rate is drawn where it did not"
    assert ("rora", "tuned") in drawn


def test_short_trials_choose_a_rate_and_a_run_of_its_own_gives_the_shared_rates_score() -> None:
    found = recovery("lora", 4, 0, shared=90.0, tuned=80.0, budget=1000)
    found.report["training"]["test"]["perplexity"] = 20.0
    ((_, cells),) = sweeps([found, recovery("rora", 4, 0, shared=30.0, tuned=21.0)])
    assert cells["lora", 4][0] == Outcome(shared=None, tuned=20.0, rate=0.2), "a short trial's score is no cell's"
    assert "by trials of 1,000 tokens" in note(found.report)
    alone = recovery("lora", 4, 0, shared=30.0, tuned=25.0)
    del alone.report["training"]["tuning"]
    for order in ([found, alone], [alone, found]):
        ((_, cells),) = sweeps([*order, recovery("rora", 4, 0, shared=30.0, tuned=21.0)])
        assert cells["lora", 4][0] == Outcome(shared=25.0, tuned=20.0, rate=0.2)


def test_recoveries_that_differ_in_more_than_a_sweep_does_are_no_sweep() -> None:
    assert not sweeps([recovery("lora", 4, 0, shared=1, tuned=1), recovery("rora", 4, 0, shared=1, tuned=1, tokens=1)])


@pytest.mark.parametrize("role", ["calibration", "data-commonsense", "scores"])
def test_recoveries_of_models_that_were_pruned_or_taught_otherwise_are_sweeps_of_their_own(role: str) -> None:
    found = []
    for place, perplexity in enumerate((20.0, 40.0)):
        for adapter in ("lora", "rora"):
            one = recovery(adapter, 4, 0, shared=None, tuned=perplexity)
            one.report["configuration"] |= {role: {"name": f"rows{place}"}, "evaluate-dense": {"limit": place}}
            found.append(one)
    both = sweeps(found)
    assert [[cells[adapter, 4][0].tuned for adapter in ("lora", "rora")] for _, cells in both] == [[20, 20], [40, 40]]


def test_the_dense_models_own_recovery_does_not_part_a_sweep() -> None:
    found = [recovery(adapter, 4, 0, shared=None, tuned=20.0) for adapter in ("lora", "rora")]
    for one in found:
        one.report["configuration"] |= {"recover-dense": one.report["configuration"]["recover"]}
    ((_, cells),) = sweeps(found)
    assert {adapter for adapter, _ in cells} == {"lora", "rora"}

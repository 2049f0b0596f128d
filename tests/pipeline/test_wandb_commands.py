"""`python -m pipeline.wandb report` and `sweep`."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from helpers.follower import follower, points
from helpers.wandbserver import Server, command, serve_wandb
from pipeline.schema.config import Config
from pipeline.tracking.tracker import Mode
from pipeline.wandb import main

needs_workspaces = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None,
    reason="pip install -e '.[wandb-report]' brings wandb-workspaces",
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_wandb() as started:
        yield started


def grids(spec: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return the run set and the panels of each grid of panels."""
    found = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    return [(grid["runSets"][0], grid["panelBankSectionConfig"]["panels"]) for grid in found]


@needs_workspaces
def test_a_report_overlays_curves_over_tokens_by_adapter_and_by_pruned_model_and_is_built_offline(
    tmp_path: Path,
) -> None:
    # An address at which nothing answers: building asks nobody.
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = command(environment, "report", "--project", "mine", "--output", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'report.json'} (not saved to W&B: --online does)\n"
    assert not done.stderr
    spec = json.loads((tmp_path / "report.json").read_text())["spec"]
    curves = grids(spec)[:3]
    assert [[group["name"] for group in runs["grouping"]] for runs, _ in curves] == [
        [],
        ["recover.value.adapter.name"],
        ["group"],
    ]
    for runs, panels in grids(spec):
        (only,) = runs["filters"]["filters"]
        assert (only["key"]["name"], only["op"], only["value"]) == ("jobType", "=", "recover")
        for panel in panels:
            if panel["viewType"] == "Run History Line Plot":
                assert panel["config"]["xAxis"] == "recover/tokens"
    drawn = {
        name
        for _, panels in curves
        for panel in panels
        if panel["viewType"] == "Run History Line Plot"
        for name in panel["config"]["metrics"]
    }
    assert {"recover/validation_loss", "recover/curve_accuracy"} <= drawn


@needs_workspaces
def test_a_report_is_saved_once_however_often_it_is_made(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    for _ in range(2):
        done = command(server.environment(tmp_path), "report", "--project", "mine", "--online", "--output", str(output))
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{server.url}/tester/mine/reports/")
    (saved,) = server.reports
    assert saved["spec"] == json.dumps(json.loads(saved["spec"]), separators=(",", ":"))
    assert grids(json.loads(saved["spec"]))


@needs_workspaces
def test_a_report_that_is_refused_says_how_to_log_in(server: Server, tmp_path: Path) -> None:
    environment = server.environment(tmp_path, key="z" * 40)
    done = command(environment, "report", "--online", "--output", str(tmp_path / "report.json"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: W&B did not take the report")
    assert len(done.stderr.splitlines()) == 1
    assert not server.reports


def test_without_the_package_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # as Python has it for what cannot be imported
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(SystemExit, match="^1$"):
        main(["report", "--output", str(tmp_path / "report.json")])
    assert "pip install 'prune-recover[wandb-report]'" in capsys.readouterr().err


def agents_commands(sweep: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the words that W&B's agent gives the pipeline, for each run of a grid."""
    names = list(sweep["parameters"])
    for values in product(*(sweep["parameters"][name]["values"] for name in names)):
        chosen = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
        words = [part for word in sweep["command"] for part in (chosen if word == "${args_no_hyphens}" else [word])]
        assert words[:4] == ["${env}", "${interpreter}", "-m", "${program}"]
        assert sweep["program"] == "pipeline"
        yield words[4:]


def test_a_sweep_files_agent_runs_every_combination_and_sends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    words = ["prune=llmpruner", "adapter=rora,dora", "recover.learning_rate=0.001,3e-3"]
    main(["sweep", *words, "--project", "mine", "--output", str(file)])
    assert f"wandb sweep {file}" in capsys.readouterr().out
    sweep = yaml.safe_load(file.read_text())
    configs: list[Config] = [pipeline.compose(*given) for given in agents_commands(sweep)]
    assert [(c.adapter.name, c.recover.learning_rate) for c in configs] == [
        ("rora", 0.001),
        ("rora", 0.003),
        ("dora", 0.001),
        ("dora", 0.003),
    ]
    assert {(c.prune.method, c.tracker.mode, c.tracker.project) for c in configs} == {
        ("llmpruner", Mode.online, "mine")
    }
    assert sweep["metric"] == {"name": "perplexity/mean/recovered", "goal": "minimize"}


@pytest.mark.parametrize(
    ("words", "said"),
    [(["ratio=0.3"], "no override has values to search over"), (["adapter=rora,dorra"], "did you mean 'dora'")],
)
def test_a_sweep_that_cannot_run_is_refused_before_it_is_written(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^1$"):
        main(["sweep", *words, "--output", str(tmp_path / "sweep.yaml")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "sweep.yaml").exists()


def test_an_agents_run_holds_the_recovery(server: Server, tmp_path: Path) -> None:
    agents = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agents1", "WANDB_PROJECT": "mine", "WANDB_ENTITY": "tester"}
    settings = {"name": "wandb", "mode": "online", "directory": str(tmp_path), "project": "mine"}
    with follower(server.environment(tmp_path) | agents, **settings) as run:
        run.log(3)
        run.end()
    assert list(server.runs) == ["agents1"]
    assert server.runs["agents1"].fields["sweep"] == "sweep1"
    assert server.runs["agents1"].history == points(3)
    assert server.runs["agents1"].summary["recovered"] == 0.26

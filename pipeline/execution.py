"""One run: print the plan, bring the targets into the store, track the curve, write the run directory's report."""

from __future__ import annotations

import dataclasses
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.console.tables import plan_table, prune_table
from pipeline.engine.engine import Engine
from pipeline.engine.provenance import commit, versions
from pipeline.engine.store import Store, explain_disk_error
from pipeline.planning.build import build_graph, cache_directory, check_adaptable, check_exportable, preview_prune
from pipeline.planning.graph import Graph
from pipeline.planning.runtime import resolve_workers
from pipeline.planning.tuning import TRIAL
from pipeline.schema.config import Action, Config
from pipeline.tracking import Tracker, open_tracker
from stages.common.files import read_jsonl
from stages.common.machine import hardware
from stages.prune.allocation.allocate import decided_by_shapes
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.recipe import table as masks_table
from stages.report.render import write_run_report

log = logging.getLogger("pipeline")


def run(config: Config, directory: Path, command: str) -> None:
    """Run `config`; `directory` is Hydra's run directory, where the report is found.

    Raises:
        UserError: something the user can mend.
    """
    started = datetime.now(UTC)
    graph = build_graph(config)
    store = Store(Path(config.runtime.artifact_root).expanduser().resolve())
    tracker_of: dict[str, Tracker] = {}
    engine = Engine(
        graph,
        store,
        cache=cache_directory(config),
        force=config.force,
        observe=lambda node: tracker_of[node.key].log if node.key in tracker_of else lambda point: None,
        threads=config.runtime.threads,
        engine=config.runtime.engine,
        workers=resolve_workers(config.runtime.engine, config.runtime.workers, graph.device),
        checkpoint_seconds=config.runtime.checkpoint_seconds,
    )
    log.info("%s", _describe(config, graph, engine))
    if config.action is Action.plan:
        return
    store.prepare()
    try:
        with _tracker(config, graph) as tracker:
            if "recover" in graph.roles:
                tracker_of[graph.roles["recover"].key] = tracker
            engine.run()
            report = _write_report(graph, engine, directory, command, started)
            _track(tracker, graph, engine, report, directory)
    except OSError as error:
        explained = explain_disk_error(error, "writing the run's report")
        if explained is None:
            raise
        raise explained from error
    _link_latest(directory)
    log.info("\n%s\n\nreport: %s", report["summary"], directory / "report.html")
    if "export" in graph.roles:
        log.info("export: %s", engine.done[graph.roles["export"].key].path)


def _describe(config: Config, graph: Graph, engine: Engine) -> str:
    """Return the plan as text: stages with their fate, and what pruning will cut."""
    model = engine.store.directory("model", graph.roles["model"].label, graph.roles["model"].key) / "model"
    preview = preview_prune(graph, config, model)
    check_adaptable(config, preview)
    check_exportable(graph, config, model, preview)
    table = plan_table(graph, engine)
    if preview is not None:
        return f"{table}\n\n{prune_table(preview)}"
    if isinstance(config.prune, SparseMLConfig):
        return f"{table}\n\n{masks_table(config.prune)}"
    later = "\n\nwhat pruning cuts is known, and printed, once the model's config.json is here"
    if "prune" in graph.roles and not decided_by_shapes(config.prune):
        later = "\n\nwhich layers lose how much follows from the scores, and is printed before anything is cut"
    return table + later if "prune" in graph.roles else table


def _tracker(config: Config, graph: Graph) -> Tracker:
    """Return the tracker of this recovery, grouped by what was pruned; a silent one where nothing is recovered."""
    recover = graph.roles.get("recover")
    name = recover.label if recover else "none"
    return open_tracker(
        config.tracker if recover else dataclasses.replace(config.tracker, name="none"),
        name=name,
        group=config.tracker.group or (recover.inputs["model"].label if recover else "none"),
        key=recover.key if recover else "",
        configuration={
            role: node.payload["config"]
            for role, node in graph.roles.items()
            if role != "report" and node.stage is not TRIAL
        },
    )


def _track(tracker: Tracker, graph: Graph, engine: Engine, report: dict[str, Any], directory: Path) -> None:
    """Give the tracker the whole curve (what it logged live is not repeated), then the report's figures."""
    recover = graph.roles.get("recover")
    if recover is None:
        return
    tracker.replay(read_jsonl(engine.done[recover.key].path / "history.jsonl"))
    tracker.summary(report, directory)


def _write_report(graph: Graph, engine: Engine, directory: Path, command: str, started: datetime) -> dict[str, Any]:
    """Write the run's report (the artifact's, and what happened in this run) into `directory`; returns it."""
    artifact = engine.done[graph.roles["report"].key]
    runs = [dataclasses.asdict(engine.runs[node.key]) for node in graph if node.key in engine.runs]
    facts = {
        "stages": runs,
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
    }
    return write_run_report(artifact.path, facts, directory)


def _link_latest(directory: Path) -> None:
    """Point `outputs/latest` at the newest run under `outputs`; a run directory elsewhere leaves it alone."""
    outputs = Path("outputs").resolve()
    if outputs not in directory.resolve().parents:
        return
    beside = outputs / f".latest.{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(directory.resolve(), target_is_directory=True)
    os.replace(beside, outputs / "latest")

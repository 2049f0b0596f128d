"""One run: it prints the plan, brings the targets into the store, tracks the curve and writes the report."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.closing import closing
from pipeline.console.tables import plan_table
from pipeline.engine.disk import explain_disk_error
from pipeline.engine.engine import Engine, Observe
from pipeline.engine.estimates import estimate
from pipeline.engine.provenance import commit, versions
from pipeline.engine.store import Store
from pipeline.planning.build import build_graph
from pipeline.planning.downloads import downloads
from pipeline.planning.graph import Graph, Node
from pipeline.planning.idle import idle
from pipeline.planning.memory import needs
from pipeline.planning.preview import export_remarks, fields_of, preview
from pipeline.planning.runtime import check_gpu, no_gpu, resolve_cards, resolve_workers
from pipeline.planning.settled import cache_directory
from pipeline.planning.speed import known
from pipeline.planning.work import model_shapes, works
from pipeline.schema.config import Config
from pipeline.tracking.run import conclude, tracker_of
from pipeline.tracking.tracker import following
from stages.common.machine import hardware
from stages.errors import UserError
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.plan import outlook
from stages.report.render import write_run_report

log = logging.getLogger("pipeline")

LAST = ("recover", "prune", "model")
"""The roles whose artifact may hold the last model of a run, the latest role first."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a configuration: what a run of it would do.

    Attributes:
        config: the configuration.
        graph: its stages, with every key.
        engine: says which of the artifacts are in the store.
        due: the stages that a run would build.
        text: the plan as the command line prints it, with what pruning will cut and the memory that is foreseen.
    """

    config: Config
    graph: Graph
    engine: Engine
    due: Sequence[Node]
    text: str

    def __str__(self) -> str:
        """Return the text."""
        return self.text


@dataclass(frozen=True, slots=True)
class Run:
    """The results of a run.

    Attributes:
        report: the contents of report.json.
        directory: the run's own directory, with report.html, .md and .json.
        artifacts: by role ("prune", "recover", …), the directory of each artifact that the run built, read or found.
        store: the artifact store.
    """

    report: dict[str, Any] = field(repr=False)
    directory: Path
    artifacts: Mapping[str, Path]
    store: Store

    @property
    def model(self) -> Path:
        """The Hugging Face directory of the run's last model: recovered, else pruned, else as it came.

        Raises:
            UserError: the recovery left an adapter that is not merged.
        """
        if not (self._last / "model").is_dir():
            raise UserError(
                f"{self._last} holds an adapter beside the pruned model, and no model of its own. Load both: "
                "stages.adapters.loading.Source.of(run.artifacts['recover'], base=run.artifacts['prune']).load()."
            )
        return self._last / "model"

    @property
    def whereabouts(self) -> str:
        """The line that says where the last model lies, or the adapter that is beside the pruned model."""
        if (self._last / "model").is_dir():
            return f"model: {self.model}"
        return f"adapter: {self._last}, of the model {self.artifacts.get('prune', self.artifacts.get('model'))}"

    @property
    def _last(self) -> Path:
        return next(self.artifacts[role] for role in LAST if role in self.artifacts)


def plan(config: Config, words: Sequence[str] = ()) -> Plan:
    """Return what `config` would do. Nothing is built or measured.

    `words` are the overrides that composed `config`. The plan says which of them have no effect.

    Raises:
        UserError: something the user can mend.
    """
    return _planned(config, words, lambda node: lambda point: None, measures=False)


def _planned(config: Config, words: Sequence[str], observe: Observe, *, measures: bool) -> Plan:
    """Return the plan of `config`. With `measures` the machine's speed is measured where a long stage needs it."""
    graph = build_graph(config)
    runtime = config.runtime
    engine = Engine(
        graph,
        Store.at(runtime.artifact_root),
        cache=cache_directory(config),
        force=config.force,
        observe=observe,
        threads=runtime.threads,
        engine=runtime.engine,
        workers=resolve_workers(runtime.engine, runtime.workers, graph.device),
        checkpoint_seconds=runtime.checkpoint_seconds,
        cards=resolve_cards(runtime.device_map, graph.device),
        deterministic=runtime.deterministic,
    )
    directory = _found(engine, graph.roles["model"])
    foreseen = preview(config, graph, directory)
    shapes = model_shapes(config, graph, lambda node: _found(engine, node))
    if graph.device == "cpu":
        engine.works = works(graph, shapes, foreseen)
    due = engine.due()
    text = _describe(graph, engine, foreseen, _seconds(engine, due, measures=measures))
    fields = fields_of(config, graph, directory)
    memory = needs(graph, shapes, foreseen, fields, runtime.engine)
    # A run that builds nothing has nothing to warn of, and should not wait.
    without_effect = idle(config, graph, words) if due or not measures else []
    exported = export_remarks(config, graph, foreseen, fields)
    fetched = downloads(due, shapes, engine.cache)
    notes = "\n".join(filter(None, (fetched, exported, *without_effect, no_gpu(graph.device))))
    return Plan(config, graph, engine, due, "\n\n".join(filter(None, (text, memory, notes))))


def _seconds(engine: Engine, due: Sequence[Node], *, measures: bool) -> Mapping[str, float]:
    """Return the expected seconds of the stages `due`, which are to be built, by key, as far as they are known."""
    speed = known(engine.cache, engine.threads.asked)
    expected = estimate(due, engine.works, engine.store, speed)
    if measures and expected.unknown:
        speed = speed.measured(expected.unknown, engine.threads.asked)
        expected = estimate(due, engine.works, engine.store, speed)
    return expected.seconds


def _found(engine: Engine, node: Node) -> Path | None:
    """Return the directory of a model that is in the store, as it was written; None where there is none."""
    artifact = engine.status(node).artifact
    return None if artifact is None else artifact.path / "model"


def run(config: Config, directory: Path, command: str, words: Sequence[str] = ()) -> Run:
    """Run `config`, whatever its action, and return what the run left.

    `directory` is the run's own, where its report is written. `command` is the command line that the report names, and
    `words` are the overrides that composed `config`, as `plan` takes them.

    Raises:
        UserError: something the user can mend.
    """
    started = datetime.now(UTC)
    logs: dict[str, Callable[[dict[str, Any]], None]] = {}
    # The engine needs `observe` before the recovery's node is known, so what logs is looked up when a node is built.
    observe: Observe = lambda node: logs.get(node.key, lambda point: None)  # noqa: E731
    planned = _planned(config, words, observe, measures=True)
    graph, engine = planned.graph, planned.engine
    log.info("%s", planned.text)
    if planned.due:
        check_gpu(graph.device)
        # A run that builds nothing takes a store that it can't write.
        engine.store.prepare()
    try:
        with engine.holding(), following(tracker_of(config, graph)) as tracker:
            if "recover" in graph.roles:
                logs[graph.roles["recover"].key] = tracker.log
            engine.run()
            report = _write_report(graph, engine, directory, command, started)
            artifacts = engine.artifacts()
            conclude(tracker, graph, artifacts, report, directory)
    except OSError as error:
        explained = explain_disk_error(error, "writing the run's report")
        if explained is None:
            raise
        raise explained from error
    _link_latest(directory)
    log.info("\n%s\n\nreport: %s", report["summary"], directory / "report.html")
    if "export" in graph.roles:
        log.info("export: %s", engine.done[graph.roles["export"].key].path)
    done = Run(report, directory, artifacts, engine.store)
    log.info("%s", done.whereabouts)
    if line := closing(config, engine.store, report, command):
        log.info("%s", line)
    return done


def _describe(graph: Graph, engine: Engine, foreseen: PrunePlan | None, seconds: Mapping[str, float]) -> str:
    """Return the plan as text: each stage with what will happen to it, then what pruning will cut."""
    table = plan_table(graph, engine, seconds)
    return table if graph.pruning is None else f"{table}\n\n{outlook(graph.pruning, foreseen)}"


def _write_report(graph: Graph, engine: Engine, directory: Path, command: str, started: datetime) -> dict[str, Any]:
    """Write the run's report into `directory` and return it: the artifact's report with the facts of this run."""
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
    """Point `outputs/latest` at the newest run under `outputs`. A run directory elsewhere leaves the link alone.

    So does a directory of that name, which is the user's own, or this run's.
    """
    outputs = Path("outputs").resolve()
    latest = outputs / "latest"
    if outputs not in directory.resolve().parents or (latest.is_dir() and not latest.is_symlink()):
        return
    # Renaming a new link over the old one leaves no moment without a link.
    beside = outputs / f".latest.{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(directory.resolve(), target_is_directory=True)
    os.replace(beside, latest)

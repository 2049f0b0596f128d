"""The tracker of one run of the pipeline: what it is opened with, and what it gets at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.planning.build import TRIAL
from pipeline.planning.graph import Graph, Node
from pipeline.schema.config import Config
from pipeline.tracking.findings import findings
from pipeline.tracking.registry import open_tracker
from pipeline.tracking.tracker import JOBS, RECOVER, Subject, Tracker
from stages.common.files import read_json, read_jsonl
from stages.common.questions import questions_behind, telling
from stages.stage import JSON

JUDGED = ("evaluate-dense", "evaluate-pruned")
"""Roles whose configurations a pruning names beside those that it rests on. A recovery names those of all roles."""


def tracker_of(config: Config, graph: Graph) -> Tracker:
    """Return the tracker of a run, with its recovery and its pruning as far as it has them."""
    return open_tracker(config.tracker, {job: _subject(config, graph, job) for job in JOBS if job in graph.roles})


def conclude(tracker: Tracker, graph: Graph, artifacts: Mapping[str, Path], report: JSON, directory: Path) -> None:
    """Give the tracker the whole curve, then what was found. Points that were logged live are not repeated.

    `artifacts` are the directories of the run's artifacts, by role.
    """
    # The tracker does the reading, in its attempts: an artifact that can't be read fails the tracker, not the run.
    if RECOVER in graph.roles:
        # A recovery that was a hit has points that this run never logged.
        tracker.replay(_curve(artifacts))
    tracker.conclude(lambda job: findings(job, report, artifacts, directory))


def _curve(artifacts: Mapping[str, Path]) -> Iterator[JSON]:
    """Yield the recovery's points. Nothing is read before the first is asked for."""
    questions = questions_behind(read_json(artifacts[RECOVER] / "recovery.json"))
    for point in read_jsonl(artifacts[RECOVER] / "history.jsonl"):
        yield telling(point, questions)


def _subject(config: Config, graph: Graph, job: str) -> Subject:
    node = graph.roles[job]
    pruned = node.inputs["model"].label if job == RECOVER else node.label
    rests_on = set(_keys(node))
    return Subject(
        name=node.label,
        group=config.tracker.group or pruned,
        key=node.key,
        configuration={
            role: other.payload["config"]
            for role, other in graph.roles.items()
            # Trials are left out: they are the recovery at other rates.
            if role != "report"
            and other.stage is not TRIAL
            and (job == RECOVER or other.key in rests_on or role in JUDGED)
        },
    )


def _keys(node: Node) -> Iterator[str]:
    """Yield the keys of a node and of all that it rests on."""
    yield node.key
    for other in node.inputs.values():
        yield from _keys(other)

"""The reports of a store, and its recoveries in groups that may stand side by side. Only report artifacts are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.store import MANIFEST, PARTIAL
from stages.common.files import read_json
from stages.errors import UserError
from stages.report.render import SCHEMA
from stages.report.wording import MODELS
from stages.stage import JSON


@dataclass(frozen=True, slots=True)
class Recovery:
    """One report of the store: its number in the table, its artifact's name and the contents of report.json."""

    number: int
    name: str
    report: JSON


def recoveries(root: Path) -> list[list[Recovery]]:
    """Return the complete reports in which a model was recovered, in groups that were judged alike.

    Within a group, protocol, examples, tasks and their rows are the same. Scores of different groups can't be compared.
    Numbers run through all groups. Recoveries of one pruned model stand together.

    Raises:
        UserError: the store is missing or holds no recovery; the message says how to make one.
    """
    found = [(name, report) for name, report in reports(root) if report["adapter"] != "none"]
    if not found:
        raise UserError(
            f"no recoveries in {root}. Make one with: make recover (or python -m pipeline ratio=0.5 adapter=rora); "
            "if they are kept elsewhere, name the store: artifact_root=DIR."
        )
    groups = sorted(_grouped(found, judged), key=lambda group: str(judged(group[0][1])))
    numbers = iter(range(1, len(found) + 1))
    return [
        [Recovery(next(numbers), name, report) for name, report in sorted(group, key=lambda one: _order(one[1]))]
        for group in groups
    ]


def judged(report: JSON) -> Hashable:
    """Return what two reports must share for their scores to be comparable: protocol, examples, tasks, rows and texts.

    Of the texts these are the kinds that the mean is over, with their number of documents.
    """
    protocol = report["protocol"]
    if not protocol:
        return ()
    sizes = [
        (name, task["metric"], next(task[model]["n"] for model in MODELS if model in task))
        for name, task in report["tasks"].items()
    ]
    digests = [leaf["sha256"] for task in (protocol["rows"] or {}).values() for leaf in task["leaves"].values()]
    texts = report["texts"] or {"mean": None}
    kinds = [texts["kinds"][kind] for kind in texts["mean"]["over"]] if texts["mean"] else []
    read = [(found["sha256"], found["documents"]) for found in kinds]
    return (protocol["name"], str(protocol["num_fewshot"]), *sizes, *digests, *read)


def seeds_apart(group: Sequence[Recovery]) -> list[list[Recovery]]:
    """Return the recoveries that differ from others in nothing but seeds, in groups of two or more."""
    return [
        list(runs.values())
        for alike in _grouped(((one.name, one.report) for one in group), _but_for_seeds)
        if len(runs := _once_each(alike, group)) > 1
    ]


def _once_each(alike: Iterable[tuple[str, JSON]], group: Sequence[Recovery]) -> dict[str, Recovery]:
    """Return the recoveries by their whole configuration. A recovery that was reported twice is one run."""
    by_name = {one.name: one for one in group}
    runs: dict[str, Recovery] = {}
    for name, report in alike:
        runs.setdefault(json.dumps(report["configuration"], sort_keys=True), by_name[name])
    return runs


def _but_for_seeds(report: JSON) -> str:
    named = [report[key] for key in ("model", "prune", "adapter", "data", "reference")]
    return json.dumps([named, without_seeds(report["configuration"])], sort_keys=True)


def without_seeds(value: Any) -> Any:
    """Return a configuration without the seeds in it."""
    if isinstance(value, dict):
        return {key: without_seeds(inner) for key, inner in value.items() if key != "seed"}
    return [without_seeds(inner) for inner in value] if isinstance(value, list) else value


def _grouped(found: Iterable[tuple[str, JSON]], key: Any) -> list[list[tuple[str, JSON]]]:
    groups: dict[Hashable, list[tuple[str, JSON]]] = {}
    for name, report in found:
        groups.setdefault(key(report), []).append((name, report))
    return list(groups.values())


def _order(report: JSON) -> tuple[str, str, float, str, int, str]:
    settings = report["configuration"].get("recover", {})
    rank = settings.get("adapter", {}).get("rank", 0)
    removed = report["params"]["ratio_achieved"] or 0.0
    return (report["model"], report["prune"], removed, report["adapter"], rank, str(settings))


def reports(root: Path) -> Iterator[tuple[str, JSON]]:
    """Yield the name and the contents of each complete report of this version's form, recovered or not."""
    for path in sorted((root / "report").glob("*/report.json")):
        directory = path.parent
        # An artifact is complete exactly when its manifest is there.
        if directory.name.endswith(PARTIAL) or not (directory / MANIFEST).is_file():
            continue
        try:
            report = read_json(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if not isinstance(report, dict) or report.get("schema") != SCHEMA:
            print(f"left out: {path} was written by another version of this project.", file=sys.stderr)
        else:
            yield directory.name, report

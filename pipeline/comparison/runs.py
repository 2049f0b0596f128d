"""The runs of a store, from its reports, in groups that may stand side by side.

A report says everything but three things. The artifacts that it was made from add them where they are still there: the
seconds of the recovery, and what every layer kept of how much.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.comparison.choice import Choice, everything
from pipeline.engine.artifact import MANIFEST
from pipeline.engine.store import PARTIAL
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_json, read_object
from stages.errors import UserError
from stages.prune.kept import kept_of
from stages.report.render import SCHEMA
from stages.report.wording import MODELS
from stages.stage import JSON

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, changes of writing direction and halves of characters, which no page can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Heads and MLP channels that a layer kept, each as (kept, of how many)."""

    heads: tuple[int, int]
    channels: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One report of the store.

    Attributes:
        number: its number on the page.
        name: its artifact's name.
        key: its artifact's key; empty where the manifest has none.
        directory: its artifact.
        report: the contents of report.json.
        seconds: the seconds that the recovery took, where its artifact says so.
        pruned: the artifact of the pruned model; None where there is none.
        layers: what the layers kept; empty where nothing was cut, or where the artifact is gone.
    """

    number: int
    name: str
    key: str
    directory: Path
    report: JSON
    seconds: float | None = None
    pruned: Path | None = None
    layers: Sequence[Layer] = ()

    @property
    def recovered(self) -> bool:
        """Whether a model was recovered."""
        return bool(self.report["adapter"] != "none")

    @property
    def last(self) -> str:
        """The place of the run's last model: "recovered", else "pruned"."""
        return "recovered" if self.recovered else "pruned"


def runs(root: Path, choose: Choice = everything) -> list[list[Run]]:
    """Return the complete reports in which a model was pruned or recovered, in groups that were judged alike.

    Within a group, protocol, examples, tasks and their rows are the same. Scores of different groups can't be compared.
    Numbers run through all groups. Of reports on one run the newest is taken.

    Raises:
        UserError: the store is missing or holds no such run, or none that `choose` wants; it says how to make one.
    """
    found = [(directory, manifest, report) for directory, manifest, report in _complete(root) if _changed(report)]
    if not found:
        raise UserError(
            f"no runs in {root}. Make one with: make recover (or python -m pipeline ratio=0.5 adapter=rora); "
            "if they are kept elsewhere, name the store: artifact_root=DIR."
        )
    wanted = choose({directory.name: str(manifest.get("key", "")) for directory, manifest, _ in found})
    newest: dict[Hashable, tuple[Path, JSON, JSON]] = {}
    for one in sorted(found, key=lambda one: str(one[1].get("created", ""))):
        if one[0].name in wanted:
            newest[judged(one[2]), _identity(one[2], one[2]["configuration"])] = one
    groups = grouped(newest.values(), lambda one: judged(one[2]))
    groups.sort(key=lambda group: str(judged(group[0][2])))
    ordered = [sorted(group, key=lambda one: _order(one[2])) for group in groups]
    numbers = iter(range(1, len(newest) + 1))
    return [[_run(next(numbers), root, *one) for one in group] for group in ordered]


def _run(number: int, root: Path, directory: Path, manifest: JSON, report: JSON) -> Run:
    upstream = {role: root / name for role, name in manifest.get("inputs", {}).items()}
    return Run(
        number=number,
        name=directory.name,
        key=str(manifest.get("key", "")),
        directory=directory,
        report=report,
        seconds=(_manifest(upstream.get("recover")).get("timing") or {}).get("seconds"),
        pruned=upstream.get("prune"),
        layers=_layers(root, upstream.get("prune")),
    )


def _layers(root: Path, pruned: Path | None) -> list[Layer]:
    """Return what each layer kept, from the pruned model's record and the dense model's config."""
    dense = _manifest(pruned).get("inputs", {}).get("model")
    files = (pruned / "model" / "pruning.json", root / dense / "model" / "config.json") if pruned and dense else ()
    if not files or not all(file.is_file() for file in files):
        return []
    from stages.decoders.shapes import DecoderShape

    try:
        record, config = (read_object(file) for file in files)
        shapes = DecoderShape.from_config(config).layers
    except UserError:  # a damaged file, or a family that this version does not know
        return []
    return [
        Layer(heads=(len(kept["heads"]), whole.heads), channels=(len(kept["mlp"]), whole.mlp))
        for kept, whole in zip(kept_of(record), shapes, strict=False)
    ]


def _manifest(artifact: Path | None) -> JSON:
    try:
        return read_object(artifact / MANIFEST) if artifact else {}
    except UserError:  # gone, or damaged: the report has what matters
        return {}


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


def but_for_seeds(report: JSON) -> str:
    """Return what runs share that differ in nothing but seeds."""
    return _identity(report, without_seeds(report["configuration"]))


def without_seeds(value: Any) -> Any:
    """Return a configuration without the seeds in it."""
    if isinstance(value, dict):
        return {key: without_seeds(inner) for key, inner in value.items() if key != "seed"}
    return [without_seeds(inner) for inner in value] if isinstance(value, list) else value


def grouped(found: Iterable[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Return the items in groups of one key, in the order in which the keys appear."""
    groups: dict[Hashable, list[Any]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())


def adapter_of(report: JSON) -> str:
    """Return an adapter's name with its size. An adapter that this version does not know is shown without a size."""
    kind, given = ADAPTERS.get(report["adapter"]), report["configuration"].get("recover", {}).get("adapter", {})
    size = []
    if kind is not None and given:
        # The store may hold a recovery of another version, whose adapter had other options.
        known = {field.name for field in fields(kind.config)}
        size.append(kind.label(kind.config(**{name: value for name, value in given.items() if name in known})))
    return " ".join([report["adapter"], *size, *(["tuned"] if report["training"].get("tuning") else [])])


def _changed(report: JSON) -> bool:
    return not report["adapter"] == report["prune"] == "none"


def _identity(report: JSON, configuration: JSON) -> str:
    named = [report[key] for key in ("model", "prune", "adapter", "data", "reference")]
    return json.dumps([named, configuration], sort_keys=True)


def _order(report: JSON) -> tuple[str, str, float, str, int, str]:
    settings = report["configuration"].get("recover", {})
    rank = settings.get("adapter", {}).get("rank", 0)
    removed = report["params"]["ratio_achieved"] or 0.0
    return (report["model"], report["prune"], removed, report["adapter"], rank, str(settings))


def _complete(root: Path) -> Iterator[tuple[Path, JSON, JSON]]:
    """Yield directory, manifest and contents of each complete report of this version's form."""
    for path in sorted((root / "report").glob("*/report.json")):
        directory = path.parent
        # An artifact is complete exactly when its manifest is there.
        if directory.name.endswith(PARTIAL) or not (directory / MANIFEST).is_file():
            continue
        try:
            report, manifest = read_json(path), _manifest(directory)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if not isinstance(report, dict) or report.get("schema") != SCHEMA:
            print(f"left out: {path} was written by another version of this project.", file=sys.stderr)
        else:
            yield directory, manifest, _printable(report)


def _printable(value: Any) -> Any:
    """Return the value with what no page can show replaced by the sign for that. Names come from configurations."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value

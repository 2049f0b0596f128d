"""The runs of a store, or of a folder of cells, in groups that may stand side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pipeline.comparison import cells
from pipeline.comparison.choice import Choice, everything
from pipeline.comparison.run import Layer, Run
from pipeline.console.lines import complain
from pipeline.engine.artifact import MANIFEST
from pipeline.engine.store import PARTIAL
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_json, read_object, sha256_of
from stages.common.visible import visible
from stages.errors import UserError
from stages.prune.kept import kept_of
from stages.report.render import SCHEMA
from stages.report.wording import MODELS
from stages.stage import JSON

JUDGING = ("evaluate", "tasks", "cost")
"""How the roles of stages begin that judge a model."""
COMPARED = "recover-dense"
"""The role of the dense model's own recovery."""
RECORD, CONFIG = "model/pruning.json", "model/config.json"
"""Files of a pruned model and of a dense one that say what the layers kept, and of how much."""


def runs(root: Path, choose: Choice = everything) -> list[list[Run]]:
    """Return the complete reports in which a model was pruned or recovered, in groups that were judged alike.

    `root` is a store, or a folder of cells. Within a group, protocol, examples, tasks, their rows and the tokens in
    which text is counted are the same. Scores of different groups can't be compared. Numbers run through all groups. Of
    reports on one run the newest is taken.

    Raises:
        UserError: `root` is missing or holds no such run, or none that `choose` wants; it says how to make one.
    """
    found = [run for run in _found(root) if _changed(run.report)]
    if not found:
        raise UserError(
            f"no runs in {root}. Make one with: make recover (or python -m pipeline ratio=0.5 adapter=rora); "
            "if they are kept elsewhere, name the store: artifact_root=DIR."
        )
    wanted = choose({run.name: run.key for run in found})
    newest: dict[Hashable, Run] = {}
    for run in sorted(found, key=lambda run: run.created):
        if run.name in wanted:
            newest[judged(run.report), _identity(run.report, run.report["configuration"])] = run
    groups = grouped(newest.values(), lambda run: judged(run.report))
    groups.sort(key=lambda group: str(judged(group[0].report)))
    ordered = [sorted(group, key=lambda run: _order(run.report)) for group in groups]
    numbers = iter(range(1, len(newest) + 1))
    return [[replace(_whole(root, run), number=next(numbers)) for run in group] for group in ordered]


def _whole(root: Path, run: Run) -> Run:
    """Return a run with what the artifacts behind its report add. A cell has it already."""
    if not run.directory.is_relative_to(root / "report"):
        return run
    inputs = _manifest(run.directory).get("inputs", {})
    pruned, recovered = (root / inputs[role] if role in inputs else None for role in ("prune", "recover"))
    seconds = (_manifest(recovered).get("timing") or {}).get("seconds")
    return replace(run, seconds=seconds, pruned=inputs.get("prune"), layers=_layers(root, pruned))


def _layers(root: Path, pruned: Path | None) -> list[Layer]:
    """Return what each layer kept, from the pruned model's record and the dense model's config."""
    cut = _manifest(pruned)
    dense = cut.get("inputs", {}).get("model")
    if not pruned or not dense:
        return []
    from stages.decoders.shapes import DecoderShape

    try:
        record, config = read_object(pruned / RECORD), read_object(root / dense / CONFIG)
        _check_written(pruned / RECORD, cut, RECORD)
        _check_written(root / dense / CONFIG, _manifest(root / dense), CONFIG)
        shapes = DecoderShape.from_config(config).layers
    except UserError:  # a file that is gone or damaged, or a family that this version does not know
        return []
    return [
        Layer(heads=(len(kept["heads"]), whole.heads), channels=(len(kept["mlp"]), whole.mlp))
        for kept, whole in zip(kept_of(record), shapes, strict=False)
    ]


def _check_written(path: Path, manifest: JSON, name: str) -> None:
    """Check that a small file of an artifact, `name` in its manifest, is what was written.

    Raises:
        UserError: its SHA-256 is not the one that the manifest has.
    """
    written = manifest.get("files", {}).get(name, {}).get("sha256")
    if written is not None and sha256_of(path) != written:
        raise UserError(
            f"{path} is not what was written (its SHA-256 differs). "
            "`python -m pipeline.inspect verify --repair` sets it aside, and the run that made it builds it again."
        )


def _manifest(artifact: Path | None) -> JSON:
    try:
        return read_object(artifact / MANIFEST) if artifact else {}
    except UserError:  # gone, or damaged: the report has what matters
        return {}


def judged(report: JSON) -> Hashable:
    """Return what two reports must share for their scores to be comparable: protocol, examples, tasks, rows and texts.

    Of the texts these are the kinds that the mean is over, with their number of documents, and the tokens in which
    perplexity counts them: models with other tokenizers have other perplexities of one text.
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
    read = [(found["sha256"], found["documents"], tokens_a_byte(found)) for found in kinds]
    return (protocol["name"], str(protocol["num_fewshot"]), *sizes, *digests, *read)


def tokens_a_byte(kind: JSON) -> str:
    """Return how many tokens a byte of a kind of text has, as text that is equal where tokenizers count alike.

    A report has the perplexity per token and the bits per byte of the same text, and their logarithms differ by this
    alone. Empty where it has not both, or where its models' own tokenizers count differently: then no perplexity of it
    is compared.
    """
    bits = kind.get("bits_per_byte", {})
    known = next((model for model in MODELS if bits.get(model) and kind.get(model, 1.0) > 1.0), None)
    if known is None or kind.get("per", "token") != "token":
        return ""
    return f"{bits[known] * math.log(2) / math.log(kind[known]):.6f}"


def made_by(configuration: JSON) -> JSON:
    """Return the configurations of the roles that made a run's model.

    Left out are those that judge, and the dense model's own recovery, of which a report's reference tells.
    """
    return {role: own for role, own in configuration.items() if not role.startswith((*JUDGING, COMPARED))}


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


def _found(root: Path) -> Iterator[Run]:
    """Yield each complete report of this version's form, of a store or of a folder of cells."""
    kept = (root / "report").glob("*/report.json")
    # An artifact is complete exactly when its manifest is there.
    whole = [path for path in kept if path.parent.suffix != PARTIAL and (path.parent / MANIFEST).is_file()]
    for path in sorted(whole) or cells.files(root):
        try:
            run = _of_store(path) if whole else cells.read(path)
            if not isinstance(run.report, dict) or run.report.get("schema") != SCHEMA:
                raise UserError(f"{path} was written by another version of this project.")
            _check_form(run.report, path)
        except UserError as error:
            complain(f"left out: {error}")
            continue
        yield replace(run, report=_printable(run.report))


def _check_form(report: JSON, path: Path) -> None:
    """Check that a report has what runs are grouped and put in order by.

    Raises:
        UserError: it lacks something, or something in it is not of its kind.
    """
    try:
        _changed(report), judged(report), but_for_seeds(report), _order(report)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise UserError(f"{path} is no whole report ({error!r}).") from None


def _of_store(path: Path) -> Run:
    manifest = _manifest(path.parent)
    _check_written(path, manifest, path.name)
    return Run(
        number=0,
        name=path.parent.name,
        key=str(manifest.get("key", "")),
        directory=path.parent,
        report=read_json(path),
        created=str(manifest.get("created", "")),
        provenance=manifest.get("provenance") or {},
    )


def _printable(value: Any) -> Any:
    """Return the value with escapes for what would do something on a page. Names come from configurations."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value

"""The graph of stages that one configuration describes, with every key, before anything runs.

    model ─┬───────────────→ evaluate (dense) ──────┐
           └→ prune ─┬─────→ evaluate (pruned) ─────┤
                     └→ recover → evaluate (recovered) → report → export

With an objective that is taught (`recover.objective=distillation`) recover has one more input, the dense model.
With `recover.tune=lr` recover is preceded by trials, one a rate (`pipeline.planning.tuning`).
With `reference=dense_recovered` the dense model takes the same recovery: one more branch, evaluated like the others.
Two roles with the same key are one artifact: a sweep evaluates the dense model once. No torch here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.planning import keys
from pipeline.planning.checks import UNCUT, check_values
from pipeline.planning.data import data_label, data_node, data_roles, named, tasks_in
from pipeline.planning.graph import Graph, Node
from pipeline.planning.runtime import resolve_device, resolve_dtype
from pipeline.planning.tasks import tasks_source
from pipeline.planning.tuning import TRIAL, recovery_roles
from pipeline.schema.config import Config, ModelEntry, Reference
from stages.adapters import ADAPTERS
from stages.common.files import read_json
from stages.common.machine import processor
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.evaluate.check import check_evaluation, settled
from stages.evaluate.config import EvaluateConfig
from stages.export.check import check_export
from stages.export.config import GgufConfig, PublishConfig
from stages.fetch.hub import resolve_revision
from stages.model.config import ModelSource
from stages.model.hub import cached_config
from stages.model.local import directory_digest
from stages.prune.allocation.allocate import check_uncut, for_scores, foreseen, reads_text, ruled
from stages.prune.allocation.plan import PrunePlan, budget_of
from stages.prune.config import PruneConfig
from stages.prune.criteria import CRITERIA
from stages.prune.sparse import MASKS
from stages.prune.sparse.config import SparseMLConfig
from stages.recover.check import adapter_of, gives_model
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.objectives.registry import decisive, objective_of
from stages.registry import STAGES
from stages.report.config import ReportConfig


def build_graph(config: Config) -> Graph:
    """Return the plan of `config`.

    Raises:
        UserError: the configuration names something unknown or impossible.
    """
    check_values(config)
    device = resolve_device(config.runtime.device)
    cuts = config.prune.method not in UNCUT
    recovers = config.adapter.name != "none"
    roles: dict[str, Node] = {}

    roles["model"] = model = _model(config.model, config)
    subject = model.label
    if recovers:
        roles |= data_roles("data", data_node(config.data, cache_directory(config)))
    if cuts and "model" in model.locations:
        check_uncut(model.locations["model"], config.prune)
    if cuts:
        prune = dataclasses.replace(
            _settled(config.prune),
            calibration_ids=_calibration_ids(config.prune.calibration_ids),
            dtype=resolve_dtype(config.prune.dtype, device),
            seed=keys.derive_seed(config.prune.seed, "prune"),
            ratio=config.prune.ratio if _ratio_rules(config.prune) else 0.0,
        )
        inputs = {"model": model}
        if _reads_text(config.prune):
            inputs["data"] = text = _calibration(config, roles.get("data"))
            roles |= _new(roles, data_roles("calibration", text))
        if prune.method in CRITERIA:
            roles["scores"] = inputs["scores"] = _scores(prune, model, inputs.get("data"))
        subject = f"{prune.method}-{subject}-{_amount(prune)}"
        roles["prune"] = Node(STAGES["prune"], subject, prune, inputs)
    pruned = roles.get("prune", model)
    dense = _dense(config, model)
    if dense is not None and dense is not model:
        roles["dense"] = dense
    if recovers:
        judged = config.reference is Reference.dense_recovered and config.evaluate.protocol != "none"
        recovered = {"recover": pruned} | ({"recover-dense": dense} if judged and dense is not None else {})
        roles |= _recoveries(config, recovered, roles, device)
    models = {"dense": dense, "dense_recovered": roles.get("recover-dense")}
    models |= {"pruned": pruned, "recovered": roles.get("recover")}
    roles |= _judge(config, {name: node for name, node in models.items() if node is not None}, device)
    roles["report"] = _report(config, roles)
    return Graph(roles | _export(config, roles), device)


def _recoveries(config: Config, models: Mapping[str, Node], known: Mapping[str, Node], device: str) -> dict[str, Node]:
    """Return the same recovery of each of `models`, by the role it has, with its trials and its teacher."""
    stage_config = RecoverStageConfig(
        adapter=config.adapter,
        recover=decisive(_narrow(RecoverConfig, config.recover)),
        dtype=resolve_dtype(config.recover.dtype, device),
        seed=keys.derive_seed(config.recover.seed, "recover"),
    )
    adapter_of(stage_config)
    roles: dict[str, Node] = {}
    inputs = {"data": known["data"]}
    objective, _ = objective_of(stage_config.recover)
    if objective.taught:
        otherwise = "train without a teacher: recover.objective=cross_entropy."
        inputs["teacher"] = teacher = _uncut(config, known["model"], "to learn from", otherwise)
        roles = _new(known, {"teacher": teacher})
    for role, model in models.items():
        roles |= recovery_roles(role, _recover(stage_config, model, inputs), config.recover)
    return roles


def _new(known: Mapping[str, Node], roles: dict[str, Node]) -> dict[str, Node]:
    """Return `roles`, or none of them where the last one's node has a role already."""
    return {} if [*roles.values()][-1].key in {node.key for node in known.values()} else roles


def _model(entry: ModelEntry, config: Config) -> Node:
    """Return the node that loads `entry`, with branch names and local paths turned into commits and digests."""
    source = ModelSource(
        kind=entry.kind,
        wheel=entry.wheel,
        member=entry.member,
        member_sha256=entry.member_sha256,
        repo=entry.repo,
        trust_remote_code=entry.trust_remote_code,
    )
    locations = {}
    if entry.kind == "hub":
        if not entry.repo:
            raise UserError("model.kind=hub needs model.repo=OWNER/NAME.")
        source.revision = resolve_revision(entry.repo, entry.revision or "main")
    if entry.kind == "local":
        if not entry.path:
            raise UserError("model=local needs model.path=DIR, a directory with config.json and safetensors.")
        path = Path(entry.path).expanduser().resolve()
        source.digest = directory_digest(path, cache_directory(config))
        locations["model"] = path
    return Node(STAGES["model"], re.sub(r"[^\w.+-]", "-", entry.name) or "model", source, locations=locations)


def _scores(prune: PruneConfig, model: Node, text: Node | None) -> Node:
    """Return the node that scores the dense model's groups, shared by all ratios and allocations."""
    inputs = {"model": model}
    if text is not None and CRITERIA[prune.method].reads_text:
        inputs["data"] = text
    return Node(STAGES["scores"], f"{prune.method}-{model.label}", for_scores(prune), inputs)


def _dense(config: Config, model: Node) -> Node | None:
    """Return the dense reference, or None where nothing is compared."""
    if config.reference is Reference.none:
        return None
    if config.reference is Reference.dense_recovered and config.adapter.name == "none":
        raise UserError(
            "reference=dense_recovered gives the dense model the same recovery, and adapter=none recovers nothing. "
            "Choose an adapter (adapter=rora), or compare with the dense model as it is: reference=dense."
        )
    return _uncut(config, model, "to compare with", "run without: reference=none.")


def _uncut(config: Config, model: Node, purpose: str, otherwise: str) -> Node:
    """Return what was cut, or for a model that comes pruned what its makers cut it from."""
    if config.prune.method != "sheared":
        return model
    if config.model.dense is None:
        raise UserError(
            f"{config.model.name} comes pruned and names no dense model {purpose}. Give one of conf/model with "
            "+model@model.dense=NAME, a directory with +model@model.dense=local model.dense.path=DIR, or "
            f"{otherwise}"
        )
    return _model(config.model.dense, config)


def _recover(config: RecoverStageConfig, model: Node, inputs: Mapping[str, Node]) -> Node:
    label = f"{config.adapter.name}-{ADAPTERS[config.adapter.name].label(config.adapter)}-{model.label}"
    return Node(STAGES["recover"], label, config, {"model": model, **inputs})


def _loaded(model: Node) -> dict[str, Node]:
    """Return the inputs from which `model` is loaded: it alone, or with the base of an adapter that stays apart."""
    apart = isinstance(model.config, RecoverStageConfig) and not gives_model(model.config)
    return {"model": model} | ({"base": model.inputs["model"]} if apart else {})


def _calibration(config: Config, rows: Node | None) -> Node:
    """Return the text that pruning looks at: the recovery data (`rows`, if any), or the data set named for it."""
    name = config.prune.calibration.data
    if name is not None and name != config.data.name:
        return data_node(named(name, {}, config.data.seed, "prune.calibration.data"), cache_directory(config))
    return rows or data_node(config.data, cache_directory(config))


def _judge(config: Config, models: Mapping[str, Node], device: str) -> dict[str, Node]:
    """Return the evaluation of each model and their running cost, or nothing for evaluate=none."""
    if config.evaluate.protocol == "none":
        return {}
    source, locations = tasks_source(config.evaluate, cache_directory(config))
    roles = {"tasks": Node(STAGES["tasks"], source.kind, source, locations=locations)}
    evaluate = _narrow(EvaluateConfig, config.evaluate)
    evaluate.dtype = resolve_dtype(evaluate.dtype, device)
    evaluate.tasks, evaluate.corpora = source.tasks, source.corpora
    check_evaluation(evaluate)
    evaluate = settled(evaluate)
    for name, model in models.items():
        inputs = _loaded(model) | {"tasks": roles["tasks"]}
        roles[f"evaluate-{name}"] = Node(STAGES["evaluate"], model.label, evaluate, inputs)
    cost = dataclasses.replace(
        config.evaluate.cost,
        dtype=resolve_dtype(config.evaluate.cost.dtype, device),
        device=device,
        threads=config.runtime.threads,
        processor=processor(),
    )
    last = models.get("recovered", models["pruned"])
    # The dense model with an adapter merged into it costs what the dense model costs, and else hardly more.
    measured = {name: model for name, model in models.items() if name != "dense_recovered"}
    base = _loaded(last).get("base")
    roles["cost"] = Node(STAGES["cost"], last.label, cost, measured | ({"base": base} if base else {}))
    return roles


def _report(config: Config, roles: Mapping[str, Node]) -> Node:
    """Return the report of whatever the other roles hold."""
    wanted = {f"evaluate-{model}": model for model in ("dense", "dense_recovered", "pruned", "recovered")}
    wanted |= {role: role for role in ("cost", "prune", "recover")}
    inputs = {name: roles[role] for role, name in wanted.items() if role in roles}
    model = roles.get("recover", roles.get("prune", roles["model"]))
    report = ReportConfig(
        model=config.model.name,
        prune=config.prune.method,
        adapter=config.adapter.name,
        data=data_label(roles["data"]) if "data" in roles else "none",
        reference=config.reference.name,
        ratio=config.prune.ratio if _ratio_rules(config.prune) else None,
        channel_ratio=config.prune.channel_ratio,
        trained_tasks=tasks_in(roles["data"]) if "data" in roles else [],
        configuration={role: node.payload["config"] for role, node in roles.items() if node.stage is not TRIAL},
    )
    return Node(STAGES["report"], model.label, report, inputs or {"model": roles["model"]})


def _export(config: Config, roles: Mapping[str, Node]) -> dict[str, Node]:
    """Return what export=hf or gguf asks for: the last model of the graph, its card with the report's results."""
    check_export(config.export)
    if config.export.format == "none":
        return {}
    model = roles.get("recover", roles.get("prune", roles["model"]))
    if "base" in _loaded(model):
        name = config.adapter.name
        kept = f"adapter={name} can't be merged into one" if config.recover.merge else "recover.merge=false"
        raise UserError(
            f"export={config.export.format} publishes one model, and {kept}. Choose an adapter that can be merged "
            "(adapter=rora recover.merge=true), or take base and adapter from the store: export=none."
        )
    inputs = {"model": model, "report": roles["report"]}
    nodes = {}
    if config.export.format == "gguf":
        nodes["gguf"] = inputs["gguf"] = Node(
            STAGES["gguf"], model.label, GgufConfig(dtype=config.export.dtype), {"model": model}
        )
    publish = PublishConfig(format=config.export.format, model=config.model.name)
    return nodes | {"export": Node(STAGES["export"], f"{config.export.format}-{model.label}", publish, inputs)}


def _narrow(kind: Any, options: Any) -> Any:
    """Return the stage's own dataclass `kind` with the values of the command line's wider one."""
    return kind(**{f.name: getattr(options, f.name) for f in dataclasses.fields(kind)})


def _settled(prune: PruneConfig) -> PruneConfig:
    """Return `prune` with the content of a recipe in place of its name, so that a key holds it."""
    return MASKS[prune.method].settled(prune) if isinstance(prune, SparseMLConfig) else prune


def _reads_text(prune: PruneConfig) -> bool:
    reads = MASKS[prune.method].reads_text if prune.method in MASKS else reads_text(prune)
    return reads and prune.calibration_ids is None


def _ratio_rules(prune: PruneConfig) -> bool:
    """Return whether `ratio` says how much goes, and no other option."""
    return not ruled(prune) and prune.megabytes is None


def _amount(prune: PruneConfig) -> str:
    """Return how much is pruned, for a directory's name."""
    share = f"{'m' if prune.budget == 'macs' else 'r'}{prune.ratio:.2f}"
    if prune.channel_ratio is not None:
        share = f"c{prune.channel_ratio:.2f}"
    if prune.layer_ratios is not None:
        share = "by-layer"
    if prune.megabytes is not None:
        share = f"{prune.megabytes:g}MB"
    return share if prune.layers == "all" else f"{share}-l{re.sub('[^0-9-]', '_', prune.layers)}"


def _calibration_ids(given: Any) -> list[list[int]] | None:
    """Return token ids from the JSON file that `prune.calibration_ids` names, so that a key holds its content."""
    if given is None:
        return None
    ids = read_json(Path(given).expanduser()) if isinstance(given, str) else given
    rows = isinstance(ids, list) and ids and all(isinstance(row, list) and row for row in ids)
    if not rows or not all(type(token) is int and token >= 0 for row in ids for token in row):
        raise UserError(
            f"prune.calibration_ids={given if isinstance(given, str) else '…'} must be a JSON list of lists "
            "of token ids (whole numbers, not negative), one inner list a sequence."
        )
    return [list(row) for row in ids]


def cache_directory(config: Config) -> Path:
    """Return where downloads are kept."""
    return Path(config.runtime.cache).expanduser().resolve()


def model_fields(config: Config, node: Node, directory: Path | None) -> Mapping[str, Any] | None:
    """Return the nearest config.json there is of the model that is pruned; None before any is there."""
    for place in (directory, node.locations.get("model")):
        if place is not None and (place / "config.json").is_file():
            fields: dict[str, Any] = read_json(place / "config.json")
            return fields
    found = cached_config(config.model.repo, node.config.revision) if config.model.repo else None
    return found or config.model.shape or None


def model_shape(config: Config, node: Node, directory: Path | None) -> DecoderShape | None:
    """Return the shape of the model that is pruned; None before its config.json is there.

    Raises:
        UserError: its architecture is not one this knows.
    """
    fields = model_fields(config, node, directory)
    return None if fields is None else DecoderShape.from_config(fields)


def preview_prune(graph: Graph, config: Config, directory: Path | None) -> PrunePlan | None:
    """Return what pruning will cut, or None where that is known only after the download or the scores, or it is masks.

    Raises:
        UserError: the ratio can't be reached, or the architecture is unknown.
    """
    if "prune" not in graph.roles or config.prune.method in MASKS:
        return None
    prune, fields = graph.roles["prune"].config, model_fields(config, graph.roles["model"], directory)
    if fields is None:
        return None
    shape, stored = DecoderShape.from_config(fields), fields.get("dtype") or fields.get("torch_dtype")
    if prune.megabytes is not None and stored is None:
        return None
    return foreseen(shape, prune, None if ruled(prune) else budget_of(shape, prune, stored))


def check_adaptable(config: Config, plan: PrunePlan | None) -> None:
    """Raise where the pruned model, as far as it is foreseen, can't have the adapter.

    Raises:
        UserError: the adapter says why.
    """
    if plan is not None and config.adapter.name != "none":
        ADAPTERS[config.adapter.name].fits(config.adapter, plan.pruned)


def check_exportable(graph: Graph, config: Config, directory: Path | None, plan: PrunePlan | None) -> None:
    """Raise where llama.cpp takes no model of the shape that will be exported, as far as that is known.

    Raises:
        UserError: it has no architecture for the family, or the family's does not take what `plan` leaves.
    """
    if config.export.format == "gguf":
        shape = plan.pruned if plan is not None else model_shape(config, graph.roles["model"], directory)
        check_export(config.export, shape)

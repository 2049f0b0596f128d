"""The graph of stages that one configuration means, with every key, before anything runs.

    model ─┬───────────────→ evaluate (dense) ──────┐
           └→ prune ─┬─────→ evaluate (pruned) ─────┤
                     └→ recover → evaluate (recovered) → report → export

Each group of options gets its meaning from its stage, in `stages/NAME/plan.py`; this module joins the stages.

- With a taught objective, recover has the dense model as one more input: the teacher.
- With `data=selfwritten` or `data=sampled`, the dense model is an input of the data: it writes the rows.
- With `recover.tune=lr`, trials precede recover, one for each rate.
- With `export=compressed`, or a GGUF file in few bits, the last model is quantised, and what comes of it is evaluated.
- With `reference=dense_recovered`, the dense model takes the same recovery in one more branch, which is evaluated too.

Two roles with the same key are one artifact: a sweep evaluates the dense model once. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.planning.data import data_node, data_roles, kinds_in, named, tasks_in
from pipeline.planning.graph import Graph, Node
from pipeline.planning.keys import canonical, derive_seed
from pipeline.planning.runtime import check_runtime, resolve_device
from pipeline.planning.settled import cache_directory, pruning_of, recovery_of, rows_of
from pipeline.schema.config import Config, Reference
from stages.data import plan as data_plan
from stages.data.config import DataConfig
from stages.errors import UserError
from stages.evaluate import plan as evaluate_plan
from stages.export import plan as export_plan
from stages.model import plan as model_plan
from stages.model.config import ModelEntry
from stages.prune.allocation.allocate import check_uncut
from stages.prune.plan import Pruning
from stages.recover import plan as recover_plan
from stages.recover.config import RecoverStageConfig
from stages.registry import STAGES
from stages.report import plan as report_plan
from stages.report.config import ReportConfig
from stages.stage import Planned

Roles = dict[str, Node]
TRIAL = STAGES["trial"]


def build_graph(config: Config) -> Graph:
    """Return the plan of `config`.

    Raises:
        UserError: the configuration names something unknown or impossible.
    """
    return _Plan(config).graph()


class _Plan:
    """The plan of one configuration while it is made, with the roles that are filled so far.

    Options are checked first. Lookups (branches of the hub, files) come after, so that a mistaken option costs none.
    """

    def __init__(self, config: Config) -> None:
        check_runtime(config.runtime)
        self.config, self.cache = config, cache_directory(config)
        self.device = resolve_device(config.runtime.device)
        self.pruning = pruning_of(config, self.device)
        self.judges = evaluate_plan.check_options(config.evaluate)
        self.recovery = recovery_of(config, self.device)
        export_plan.check_export(config.export, server=config.prune.serve)
        self.roles: Roles = {}

    def graph(self) -> Graph:
        """Return the whole graph."""
        model = self.roles["model"] = self._model(self.config.model)
        if self.recovery is not None:
            self.roles |= data_roles("data", self._data(self.config.data))
        if self.pruning is not None:
            # Only what is known before the model has come: a key must not change by that.
            self.pruning = self.pruning.of(model_plan.known_fields(self.config.model))
            self._prune(self.pruning, model)
        pruned = self.roles.get("prune", model)
        dense = self._dense(model)
        # For a model that is not pruned further, the dense model is the role "model" itself.
        if dense is not None and dense is not model:
            self.roles["dense"] = dense
        if self.recovery is not None:
            self._recover(self.recovery, pruned, dense)
        self._quantise()
        if self.judges:
            models = {"dense": dense, "dense_recovered": self.roles.get("recover-dense")}
            models |= {"pruned": pruned, "recovered": self.roles.get("recover")}
            self._judge({name: node for name, node in models.items() if node is not None})
        self.roles["report"] = self._report()
        self._export()
        return Graph(self.roles, self.device, self.pruning)

    def _model(self, entry: ModelEntry) -> Node:
        return _node("model", model_plan.planned(entry, self.cache))

    def _prune(self, pruning: Pruning, model: Node) -> None:
        """Fill the role of the prune stage, and the roles of the text and the scores that it reads."""
        # A local directory may hold a model that was pruned before.
        if "model" in model.locations:
            check_uncut(model.locations["model"], pruning.config)
        inputs = {"model": model}
        if pruning.reads_text:
            inputs["data"] = text = self._calibration()
            self._add("calibration", text)
        # Scores do not depend on the ratio, so the prunings of a sweep share one artifact of them.
        if pruning.scored is not None:
            read = {"data": inputs["data"]} if pruning.scores_read_text else {}
            label = f"{pruning.config.method}-{model.label}"
            scores = Node(STAGES["scores"], label, pruning.scored, {"model": model, **read})
            self.roles["scores"] = inputs["scores"] = scores
        label = f"{pruning.config.method}-{model.label}-{pruning.label}"
        locations = {} if pruning.like is None else {"like": pruning.like.path}
        self.roles["prune"] = Node(STAGES["prune"], label, pruning.config, inputs, locations)

    def _calibration(self) -> Node:
        """Return the text that pruning looks at: the recovery data, or the data set that calibration names."""
        name, data = self.config.prune.calibration.data, self.config.data
        if name is not None and name != data.name:
            data = named(name, {}, data.seed, "prune.calibration.data")
        elif "data" in self.roles:
            return self.roles["data"]
        return self._data(data)

    def _data(self, data: DataConfig) -> Node:
        return data_node(data, self.cache, self._writer, device=self.device)

    def _writer(self) -> Node:
        """Return the model that writes rows, the dense one, which gets a role unless it has one."""
        writer = self._uncut(self.roles["model"], "to write rows", "take rows that no model writes: data=commonsense.")
        self._add("writer", writer)
        return writer

    def _add(self, role: str, added: Node) -> None:
        """Give a node its role, and the parts of a mixture theirs, unless the node already plays one."""
        if added.key not in {node.key for node in self.roles.values()}:
            self.roles |= data_roles(role, added)

    def _dense(self, model: Node) -> Node | None:
        """Return the dense reference, or None where nothing is compared."""
        if self.config.reference is Reference.none:
            return None
        if self.config.reference is Reference.dense_recovered and self.recovery is None:
            raise UserError(
                "reference=dense_recovered gives the dense model the same recovery, and adapter=none recovers nothing. "
                "Choose an adapter (adapter=rora), or compare with the dense model as it is: reference=dense."
            )
        return self._uncut(model, "to compare with", "run without: reference=none.")

    def _uncut(self, model: Node, purpose: str, otherwise: str) -> Node:
        """Return the dense model: the given one, or, where that comes pruned, the model its makers cut it from."""
        if self.config.prune.method != "sheared":
            return model
        if self.config.model.dense is None:
            raise UserError(
                f"{self.config.model.name} comes pruned and names no dense model {purpose}. Give one of conf/model "
                "with +model@model.dense=NAME, a directory with +model@model.dense=local model.dense.path=DIR, or "
                f"{otherwise}"
            )
        return self._model(self.config.model.dense)

    def _recover(self, recovery: RecoverStageConfig, pruned: Node, dense: Node | None) -> None:
        """Fill the roles of the pruned model's recovery, and of the dense model's where that is the reference."""
        masked = self.pruning is not None and self.pruning.masks
        recover_plan.check_base(recovery, masked=masked, engine=self.config.runtime.engine)
        inputs = {"data": self.roles["data"]}
        if recover_plan.taught(recovery):
            otherwise = "train without a teacher: recover.objective=cross_entropy."
            inputs["teacher"] = teacher = self._uncut(self.roles["model"], "to learn from", otherwise)
            self._add("teacher", teacher)
        self._recovered("recover", recovery, {"model": pruned, **inputs})
        # The dense model's recovery serves only as a reference, so without judging it is not built.
        if self.judges and dense is not None and self.config.reference is Reference.dense_recovered:
            self._recovered("recover-dense", recovery, {"model": dense, **inputs})

    def _recovered(self, role: str, recovery: RecoverStageConfig, inputs: Mapping[str, Node]) -> None:
        """Fill `role` with a recovery. Where there are trials, they come first and decide its rate."""
        label = f"{recover_plan.label(recovery)}-{inputs['model'].label}"
        trials = recover_plan.trials(recovery, self.config.recover)
        if not trials:
            self.roles[role] = Node(STAGES["recover"], label, recovery, inputs)
            return
        tried = {f"{rate:g}": Node(TRIAL, f"{label}-lr{rate:g}", trial, inputs) for rate, trial in trials.items()}
        self.roles |= {f"{role.replace('recover', 'trial')}-{rate}": node for rate, node in tried.items()}
        inputs = {**inputs, **{f"trial {rate}": node for rate, node in tried.items()}}
        self.roles[role] = Node(STAGES["tune"], f"{label}-tuned", recover_plan.tuned(recovery, trials), inputs)

    def _loaded(self, model: Node) -> Roles:
        """Return the inputs that `model` is loaded from: the model, and the base of an adapter that is not merged."""
        apart = isinstance(model.config, RecoverStageConfig) and not recover_plan.gives_model(model.config)
        return {"model": model} | ({"base": model.inputs["model"]} if apart else {})

    def _judge(self, models: Roles) -> None:
        """Fill the roles of each model's evaluation, and the role of the running cost."""
        options = self.config.evaluate
        tasks = self.roles["tasks"] = _node("tasks", rows_of(self.config))
        rows = tasks.config
        evaluate = evaluate_plan.planned(options, rows.tasks, rows.texts, rows.corpora, self.device)
        for name, model in models.items():
            inputs = self._loaded(model) | {"tasks": tasks}
            self.roles[f"evaluate-{name}"] = Node(STAGES["evaluate"], model.label, evaluate, inputs)
        if export_plan.rounds(self.config.export):
            quantised = self.roles.get("quantise") or self.roles["gguf"]
            # A file's weights take the place of those of the model that it was written from.
            inputs = {"model": quantised, "tasks": tasks}
            inputs |= {"base": quantised.inputs["model"]} if "gguf" in self.roles else {}
            self.roles["evaluate-quantised"] = Node(STAGES["evaluate"], quantised.label, evaluate, inputs)
        cost = evaluate_plan.planned_cost(options.cost, self.device, self.config.runtime.threads)
        last = models.get("recovered", models["pruned"])
        # The dense model with a merged adapter costs what the dense model costs; with one apart, hardly more.
        measured = {name: model for name, model in models.items() if name != "dense_recovered"}
        base = {name: node for name, node in self._loaded(last).items() if name == "base"}
        self.roles["cost"] = Node(STAGES["cost"], last.label, cost, measured | base)

    def _report(self) -> Node:
        """Return the report on whatever the other roles hold."""
        config, roles, data = self.config, self.roles, self.roles.get("data")
        report = ReportConfig(
            model=config.model.name,
            prune=config.prune.method if self.pruning is None else self.pruning.config.method,
            adapter=config.adapter.name,
            data="none" if data is None else data_plan.label(data.config),
            reference=config.reference.name,
            ratio=0.0 if self.pruning is None else self.pruning.ratio,
            channel_ratio=config.prune.channel_ratio,
            trained_tasks=[] if data is None else tasks_in(data),
            resembles={use: kinds_in(node) for use, node in self._texts_read()},
            # Trials are left out: they are the recovery at other rates. In the order of the key, so that equal keys
            # give equal bytes.
            configuration=canonical({role: n.payload["config"] for role, n in roles.items() if n.stage is not TRIAL}),
        )
        return Node(STAGES["report"], self._last().label, report, report_plan.read(roles) or {"model": roles["model"]})

    def _texts_read(self) -> Iterator[tuple[str, Node]]:
        """Yield the rows that the pruning is calibrated on and those that the recovery trains on."""
        calibrated = [self.roles[role].inputs.get("data") for role in ("scores", "prune") if role in self.roles]
        yield from (("calibration", node) for node in calibrated if node is not None)
        if "data" in self.roles:
            yield "recovery", self.roles["data"]

    def _last(self) -> Node:
        """Return the last model of the graph."""
        return next(self.roles[role] for role in ("recover", "prune", "model") if role in self.roles)

    def _quantise(self) -> None:
        """Fill the role of the last model in few bits: of export=compressed, or the file of export=gguf."""
        options, model = self.config.export, self._last()
        if options.format == "none":
            return
        merged = "base" not in self._loaded(model)
        export_plan.check_publishable(options, self.config.adapter.name, merge=self.config.recover.merge, merged=merged)
        if (gguf := export_plan.gguf(options)) is not None:
            self.roles["gguf"] = Node(STAGES["gguf"], model.label, gguf, {"model": model})
        seed = derive_seed(self.config.seed, "quantise")
        if (compressed := export_plan.compressed(options, seed)) is not None:
            inputs = {"model": model}
            if export_plan.reads_text(options):
                inputs["data"] = text = self._calibration()
                self._add("quantise-data", text)
            label = f"{compressed.scheme}-{model.label}"
            self.roles["quantise"] = Node(STAGES["quantise"], label, compressed, inputs)

    def _export(self) -> None:
        """Fill the role of an export: the last model, or its file or its quantised form, with the report's results."""
        options, model = self.config.export, self._last()
        if options.format == "none":
            return
        inputs = {"model": model, "report": self.roles["report"]}
        inputs |= {role: self.roles[role] for role in ("gguf", "quantise") if role in self.roles}
        published = export_plan.published(options, self.config.model.name, self.config.prune.serve)
        self.roles["export"] = Node(STAGES["export"], f"{options.format}-{model.label}", published, inputs)


def _node(stage: str, planned: Planned) -> Node:
    """Return the node of a stage without inputs."""
    return Node(STAGES[stage], planned.label, planned.config, locations=planned.locations)

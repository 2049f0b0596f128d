"""The schema of the command line: one dataclass for each group, checked by Hydra before anything runs.

Groups whose options differ by method (prune, adapter, data) take their schemas from the methods' own files. A new
criterion or adapter therefore brings its options with it. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cache

from hydra.core.config_store import ConfigStore

from pipeline.tracking.tracker import TrackerConfig
from stages.adapters.config import AdapterConfig
from stages.adapters.registry import ADAPTERS
from stages.data.config import DataConfig
from stages.data.registry import DATASETS
from stages.evaluate.config import EvaluateOptions
from stages.export.config import ExportConfig
from stages.model.config import ModelConfig
from stages.prune.config import PruneConfig
from stages.prune.registry import METHODS
from stages.recover.config import RecoverOptions
from stages.stage import CHECKPOINT_SECONDS


class Action(Enum):
    """How far a command goes: it only plans, or it runs."""

    run = "run"
    plan = "plan"


class Reference(Enum):
    """The model against which "recovered" is measured."""

    dense = "dense"
    """The dense model as it is: how much of its score came back."""
    dense_recovered = "dense_recovered"
    """The dense model after the same recovery: how much is reached of what the training gives an unpruned model."""
    none = "none"


@dataclass(kw_only=True, slots=True)
class RuntimeConfig:
    """Where a run takes place. Nothing here enters a key, except through an "auto" precision."""

    device: str = "auto"
    """cpu, cuda, or auto (cuda where its driver is loaded)."""
    threads: int | None = None
    """Processor threads for torch. Null takes one for each core that no other work keeps busy as a stage begins."""
    engine: str = "single"
    """How processes of this machine share a recovery: single (there is one), ddp (each has a copy of the model) or fsdp
    (each has a piece of the model). With either, each judges a part of an evaluation's documents, on a whole copy. The
    run starts them itself."""
    workers: int | None = None
    """Number of those processes; null is one for each visible GPU. On a processor the number has to be given."""
    device_map: str | None = None
    """How pruning and evaluation hold a model: null is on one GPU; auto spreads its layers over all visible ones, for a
    model larger than one. Where there is one GPU or none, auto is null. Such a model is recovered by runtime=fsdp."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between two checkpoints of a recovery. A killed run resumes from the last and loses no more than that.
    Where saving takes long, the time between is longer, so that saving takes 3 % of it at most; 0 saves every step."""
    deterministic: bool = False
    """Whether a GPU takes sums in a fixed order too, so that a run gives the same bytes again. Slower; no effect on a
    processor, whose sums have one."""
    artifact_root: str = "artifacts"
    """Directory of the artifact store, relative to the working directory."""
    cache: str = "~/.cache/prune-recover"
    """Directory of the downloads."""


@dataclass(kw_only=True, slots=True)
class Config:
    """The whole command line."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is pruned and recovered."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    """How the model is pruned: the criterion, and how the cut is shared out."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """What is trained to recover the model; none recovers nothing."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text that the recovery trains on; pruning reads it too, unless prune.calibration.data names another."""
    recover: RecoverOptions = field(default_factory=RecoverOptions)
    """How the recovery trains: budget, rate, loss."""
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """How the dense, the pruned and the recovered model are judged."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """The form in which the last model is written once more, to be published."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """Where the recovery's curve is followed."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Where the run takes place, and where its files are."""
    action: Action = Action.run
    ratio: float = 0.2
    """Share of all parameters to remove, in [0, 1)."""
    reference: Reference = Reference.dense
    seed: int = 0
    """Seed of everything that is drawn; the groups take it unless they have one of their own."""
    force: list[str] = field(default_factory=list)
    """Stages to build again, with every stage that depends on them: [prune], [recover], …"""


@cache
def register() -> None:
    """Give Hydra the schemas, once a process."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="prune/schema", name="base", node=PruneConfig)
    for name, method in METHODS.items():
        store.store(group="prune/schema", name=name, node=method.config)
    store.store(group="adapter/schema", name="base", node=AdapterConfig)
    for name, dataset in DATASETS.items():
        store.store(group="data/schema", name=name, node=dataset.config)
    for name, adapter in ADAPTERS.items():
        store.store(group="adapter/schema", name=name, node=adapter.config)

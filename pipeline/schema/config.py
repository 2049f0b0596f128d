"""The schema of the command line: one dataclass a group, checked by Hydra before anything runs.

A group whose options differ by method (prune, adapter) takes its schema from the method's own file, so that a new
criterion or adapter brings its options with it. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cache

from hydra.core.config_store import ConfigStore

from pipeline.tracking import TrackerConfig
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
    """What to do with the plan."""

    run = "run"
    plan = "plan"


class Reference(Enum):
    """What "recovered" is measured against."""

    dense = "dense"
    """The dense model as it is: how much of its score is back."""
    dense_recovered = "dense_recovered"
    """The dense model after the same recovery: how much of what the training gives an unpruned model is reached."""
    none = "none"


@dataclass(kw_only=True, slots=True)
class RuntimeConfig:
    """Where it runs; nothing here enters a key, except through an "auto" precision."""

    device: str = "auto"
    """cpu, cuda, or auto (cuda where its driver is loaded)."""
    threads: int | None = None
    """Processor threads for torch; null leaves torch's own choice."""
    engine: str = "single"
    """How a recovery is shared by several processes of this machine, which it starts itself: single (there is one), ddp
    (a copy of the model each) or fsdp (a piece of the model each)."""
    workers: int | None = None
    """Number of those processes; null is one for each visible GPU, and has to be said on a processor."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between two checkpoints of a recovery, from which a killed run resumes; what a kill may cost."""
    artifact_root: str = "artifacts"
    """Where artifacts are kept, relative to the working directory."""
    cache: str = "~/.cache/prune-recover"
    """Where downloads are kept."""


@dataclass(kw_only=True, slots=True)
class Config:
    """The whole command line."""

    model: ModelConfig = field(default_factory=ModelConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recover: RecoverOptions = field(default_factory=RecoverOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    action: Action = Action.run
    ratio: float = 0.2
    """Share of all parameters to remove, in [0, 1)."""
    reference: Reference = Reference.dense
    seed: int = 0
    force: list[str] = field(default_factory=list)
    """Stages to build again, with everything that depends on them: [prune], [recover], …"""


@cache
def register() -> None:
    """Tell Hydra the schemas, once."""
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

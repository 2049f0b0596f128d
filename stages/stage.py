"""The record of a stage, and the types of what its function is given.

Config and inputs decide a result; the context decides where it runs. They are different types: nothing in `Context` may
change what a stage writes, beyond the rounding of another device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
ENGINES = ("single", "ddp", "fsdp")
"""How a stage shares its work among processes. With "single" there is one process."""
CHECKPOINT_SECONDS = 60.0
"""The most seconds of work that a killed stage loses, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a stage runs.

    Attributes:
        output: the directory to write in. It survives a killed run, so a stage can resume from what is there.
        device: torch's name of the device, "cpu" or "cuda".
        cache: a directory for downloads, shared by all runs and safe to delete.
        locations: where inputs that the config names by digest (a local model) are on this machine.
        checkpoint_seconds: a long stage writes a checkpoint about this often, or less often where saving takes long; 0
            is as often as it can.
        workers: the number of processes that may share the stage's work. The stage starts them itself.
        engine: how those processes share the work; one of `ENGINES`.
        cards: torch's names of the devices over which a stage that can do so spreads a model's layers; empty where a
            model is on `device`.
        deterministic: whether sums are taken in a fixed order on a GPU too; those processes see to it themselves.
        log: called with each point of a curve (a flat dictionary of numbers) as it appears.
    """

    output: Path
    device: str = "cpu"
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "prune-recover")
    locations: Mapping[str, Path] = field(default_factory=dict)
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    workers: int = 1
    engine: str = "single"
    cards: tuple[str, ...] = ()
    deterministic: bool = False
    log: Callable[[JSON], None] = lambda point: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The arguments of a stage as its `plan.py` finds them before anything runs.

    Attributes:
        label: the readable part of the artifact's directory name.
        config: everything that decides the artifact, settled: no "auto", no branch name, no path.
        locations: where the things that the config names by digest are on this machine (`Context.locations`).
    """

    label: str
    config: Any
    locations: Mapping[str, Path] = field(default_factory=dict)


Run = Callable[[Any, Mapping[str, Path], Context], JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A named, versioned function from (config, input directories) to an output directory.

    Attributes:
        name: the directory of the stage's artifacts in the store, and part of their keys.
        version: bumped by hand when the same config and inputs would give another result.
        function: "module:name" of `run(config, inputs, context) -> summary`. It is imported when the stage runs, so a
            plan loads no torch.
        outputs: paths, relative to the artifact, that a finished run promises to have written. "|" separates
            alternatives.
    """

    name: str
    version: int
    function: str
    outputs: tuple[str, ...]

    def load(self) -> Run:
        """Return the stage's function, importing its module."""
        module, _, name = self.function.partition(":")
        run: Run = getattr(import_module(module), name)
        return run

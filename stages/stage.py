"""What a stage is: a frozen record around a plain function, and what that function is handed.

What decides a result (the config, the inputs) and what decides where it runs (the context) are different types:
nothing in `Context` may change what a stage writes, beyond the rounding of another device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
ENGINES = ("single", "ddp", "fsdp")
"""How a stage shares its work among processes; "single": there is one."""
CHECKPOINT_SECONDS = 60.0
"""Seconds of work that a killed stage loses at most, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a stage runs.

    Attributes:
        output: the directory to write in. It survives a killed run, so what lies there can be resumed from.
        device: torch's name of the device, "cpu" or "cuda".
        cache: a directory shared by all runs for downloads, safe to delete.
        locations: for inputs the config names by digest (a local model): where they lie on this machine.
        checkpoint_seconds: a long stage leaves what it can resume from about this often; 0 is as often as it can.
        workers: processes that a stage which can may share its work among; it starts them itself.
        engine: how they share it, one of `ENGINES`.
        log: called with one point of a curve (a flat dictionary of numbers) as it appears.
    """

    output: Path
    device: str = "cpu"
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "prune-recover")
    locations: Mapping[str, Path] = field(default_factory=dict)
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    workers: int = 1
    engine: str = "single"
    log: Callable[[JSON], None] = lambda point: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a stage will be given, found before anything runs: each stage's `plan.py` says it.

    Attributes:
        label: the readable part of the artifact's directory.
        config: everything that decides the artifact, settled: no "auto", no branch name, no path.
        locations: where on this machine the things lie that the config names by digest (`Context.locations`).
    """

    label: str
    config: Any
    locations: Mapping[str, Path] = field(default_factory=dict)


Run = Callable[[Any, Mapping[str, Path], Context], JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A named, versioned function from (config, input directories) to an output directory.

    Attributes:
        name: the first part of its artifacts' directory.
        version: bump it by hand when the same config and inputs would give another result.
        function: "module:name" of `run(config, inputs, context) -> summary`, imported when the stage runs,
            so that a plan loads no torch.
        outputs: paths, relative to the artifact, that a finished run promises to have written.
    """

    name: str
    version: int
    function: str
    outputs: tuple[str, ...]

    def load(self) -> Run:
        """Import and return the stage's function."""
        module, _, name = self.function.partition(":")
        run: Run = getattr(import_module(module), name)
        return run

"""Stages that count how often they run, and graphs of them, for tests of the engine."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.planning.graph import Graph, Node
from stages.common.machine import Peak, note_worker
from stages.stage import Context, Stage


@dataclass
class Number:
    value: int = 1
    fail: bool = False


def double(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Write twice the sum of the inputs plus the value; leave a mark of every start."""
    with (context.cache / "runs.txt").open("a") as runs:
        runs.write(f"{config.value}\n")
    total = config.value + sum(int((path / "number.txt").read_text()) for path in inputs.values())
    (context.output / "progress.txt").write_text("half")
    if config.fail and not (context.cache / "mended").exists():
        raise RuntimeError("killed")
    (context.output / "progress.txt").unlink()
    (context.output / "number.txt").write_text(str(2 * total))
    context.log({"total": total})
    return {"number": 2 * total}


def slow(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """As `double`, long enough for a second process to come upon the lock."""
    time.sleep(1.0)
    return double(config, inputs, context)


LITTER: list[weakref.ref[Any]] = []
"""What `litter` left behind, alive or not."""


class _Cycle:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


def litter(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Write how much of what earlier stages left behind is still in memory, and leave something behind."""
    (context.output / "number.txt").write_text(str(sum(left() is not None for left in LITTER)))
    LITTER.append(weakref.ref(_Cycle()))
    return {}


class Cards:
    """Two GPUs that are not there: the functions of `torch.cuda` that tell and free memory, on numbers alone."""

    def __init__(self) -> None:
        self.kept, self.most = [0, 0], [0, 0]

    def hold(self, card: int, size: int) -> None:
        """Hold tensors of `size` bytes for a moment; the allocator keeps the memory."""
        self.kept[card], self.most[card] = max(self.kept[card], size), max(self.most[card], size)

    def empty_cache(self) -> None:
        self.kept = [0, 0]

    def reset_peak_memory_stats(self, card: int) -> None:
        self.most[card] = 0

    def max_memory_allocated(self, card: int) -> int:
        return self.most[card]

    def device_count(self) -> int:
        return 2

    def is_initialized(self) -> bool:
        return True


CARDS = Cards()


def on_cards(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Write how much memory is kept on the cards when the stage begins, and hold some; above 10 a worker does too."""
    (context.output / "number.txt").write_text(str(sum(CARDS.kept)))
    CARDS.hold(0, config.value)
    if config.value > 10:
        CARDS.hold(1, 2 * config.value)
        note_worker(1, Peak(7, {"cuda:1": 3 * config.value}))
    return {}


def promise_breaker(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Finish without writing anything."""
    return {}


def full_disk(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Fail as a full disk does, after some work."""
    (context.output / "progress.txt").write_text("half")
    raise OSError(28, os.strerror(28), str(context.output / "number.txt"))


def unordered(config: Number, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Call an operation of torch that has no kernel with a fixed order."""
    import torch

    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    return double(config, inputs, context)


def stage(function: str = "double", version: int = 1) -> Stage:
    """Return a stage that runs one of the functions above."""
    return Stage(
        name=f"toy-{function}",
        version=version,
        function=f"{__name__}:{function}",
        outputs=("number.txt",),
    )


def chain(*values: int, function: str = "double", version: int = 1, fail: int | None = None) -> Graph:
    """Return a graph whose nodes feed each other: first → … → last."""
    roles: dict[str, Node] = {}
    previous: Node | None = None
    for i, value in enumerate(values):
        inputs = {} if previous is None else {"previous": previous}
        config = Number(value, fail=fail == i)
        previous = Node(stage(function, version), f"n{i}", config, inputs)
        roles["model" if i == 0 else "report" if i == len(values) - 1 else f"middle{i}"] = previous
    return Graph(roles, "cpu")

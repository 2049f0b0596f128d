"""The losses of a step's micro-batches; they stay on the device until all of them are read at once.

Reading a number waits for the device. So a step reads once: its losses, and the norm of its gradient, which tells
whether all gradients are finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Summed = Mapping[str, float]
"""What an objective is summed over a micro-batch's labels, in nats, with the parts of it."""


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of one worker's turns at a step."""

    names: tuple[tuple[str, ...], ...]
    """Names of the losses of each turn; none where the worker ran nothing of its own."""
    values: Tensor
    """All of them, turn by turn [losses]."""

    @classmethod
    def of(cls, turns: Sequence[Mapping[str, Tensor]]) -> Losses:
        """Return the losses of these turns, where they are."""
        values = [value.detach() for turn in turns for value in turn.values()]
        return cls(tuple(tuple(turn) for turn in turns), torch.stack(values) if values else torch.empty(0))

    def sent(self) -> Losses:
        """Return the losses in a form that another process can read."""
        return Losses(self.names, self.values.cpu())


def read(workers: Sequence[Losses], norm: Tensor) -> tuple[list[list[Summed]], float]:
    """Return the losses of all workers by their turns, and the gradient's norm; it waits for the device once."""
    *values, size = torch.cat([*(worker.values.to(norm.device) for worker in workers), norm.reshape(1)]).tolist()
    rest = iter(values)
    return [list(_turns(worker, rest)) for worker in workers], size


def _turns(losses: Losses, values: Iterator[float]) -> Iterator[Summed]:
    for names in losses.names:
        # `zip` asks the names first, so it takes no value beyond its turn's.
        yield dict(zip(names, values, strict=False))

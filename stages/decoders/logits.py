"""The map from the output of a model's head to its logits, for all code that applies the head itself.

With h the head's output, s a scaling (granite) and c a cap (gemma), the logits are

    z = c tanh(h / (s c)),        without a cap h / s.

Both are read from the model's config here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Logits:
    """A model's map from its head's output to its logits; the identity unless told otherwise."""

    scaling: float = 1.0
    """s, by which the head's output is divided."""
    softcap: float | None = None
    """c, the largest size of a logit."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Logits:
        """Return the map that the config of `model` describes."""
        scaling = float(getattr(model.config, "logits_scaling", 1.0))
        return cls(scaling, getattr(model.config, "final_logit_softcapping", None))

    def __call__(self, given: Tensor) -> Tensor:
        """Return the logits for the head's output, of any shape, with their graph."""
        scaled = given if self.scaling == 1 else given / self.scaling
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    def in_place(self, given: Tensor) -> Tensor:
        """Return the logits in the memory of the head's output."""
        if self.scaling != 1:
            given.div_(self.scaling)
        return given if self.softcap is None else given.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return dz/dh where the logits are z, in their shape; None where it is 1 everywhere."""
        # With z = c tanh(h / (s c)), dz/dh = (1 − (z/c)²) / s.
        if self.softcap is not None:
            return (logits / self.softcap).square_().neg_().add_(1).div_(self.scaling)
        if self.scaling == 1:
            return None
        # Filled where the logits are: a number that is copied there would wait for the device.
        return logits.new_full((), 1 / self.scaling).expand_as(logits)


PLAIN = Logits()
"""The head's output itself."""

"""What an adapter is to the training loop. No torch here: a plan reads these."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.recover.config import AdapterConfig

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A way of training few parameters of a frozen model.

    Attributes:
        scaling: the factor on the adapter's output, from rank and alpha; None where there is none.
        attach: changes the model in place, so that its forward pass has the adapter in it and exactly the parameters
            to train require a gradient; returns whatever `save` needs. Random numbers come from torch's generator,
            which the caller has seeded. In the modules named last, zeros of the weights are a mask and stay.
        save: writes the trained adapter into a directory.
        merge: returns a freshly loaded base model with the saved adapter folded into its weights, the masks kept; None
            for adapters that can't be folded.
    """

    attach: Callable[[PreTrainedModel, AdapterConfig, Collection[str]], Module]
    save: Callable[[Module, Path], None]
    merge: Callable[[PreTrainedModel, Path, Collection[str]], PreTrainedModel] | None
    scaling: Callable[[AdapterConfig], float] | None

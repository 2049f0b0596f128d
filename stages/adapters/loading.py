"""A stage's model wherever one is to be run: the directory `model/`, or base and adapter where they can't be merged.

A recovery whose adapter can't be folded into weights leaves `adapter/` and no `model/`: who reads such an artifact is
handed the one it was trained on beside it. Which adapter it is stands in its recovery.json. This is the one place where
stages that judge a model meet the adapters of `stages.recover`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.adapters.registry import ADAPTERS
from stages.common.choices import lookup
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model
from stages.decoders.masks import masked_modules
from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Source:
    """What a model is loaded from.

    Attributes:
        model: the directory of a model, with config.json and as a rule a tokenizer.
        recovery: the artifact whose `adapter/` is attached to it; None where there is nothing to attach.
    """

    model: Path
    recovery: Path | None = None

    @classmethod
    def of(cls, artifact: Path, base: Path | None = None) -> Source:
        """Return the source of the model that `artifact` stands for; `base` is the artifact that it was trained on.

        Raises:
            UserError: the artifact holds an adapter alone, and no base is given.
        """
        if (artifact / "model").is_dir() or not (artifact / "adapter").is_dir():
            return cls(artifact / "model")
        if base is None:
            raise UserError(f"{artifact} holds an adapter that can't be merged, and not the model to attach it to.")
        return cls(base / "model", artifact)

    @property
    def weights(self) -> list[Path]:
        """The files that its numbers are stored in."""
        directories = [self.model, *([self.recovery / "adapter"] if self.recovery else [])]
        return [file for directory in directories for file in sorted(directory.glob("*.safetensors"))]

    def load(self, *, dtype: str, device: str = "cpu") -> PreTrainedModel:
        """Return the model in evaluation mode, weights and adapter in `dtype`.

        Raises:
            UserError: a directory is not whole, or the adapter is another model's.
        """
        model = load_model(self.model, dtype=dtype, device=device)
        if self.recovery is None:
            return model
        name = read_json(self.recovery / "recovery.json")["adapter"]["name"]
        adapter = lookup("adapter", name, ADAPTERS)
        if adapter.load is None:
            raise UserError(f"{self.recovery}: adapter '{name}' is no adapter that is loaded. Build it again.")
        adapter.load(model, self.recovery / "adapter", masked_modules(self.model))
        return model.eval()


def added_multiply_accumulates(model: PreTrainedModel) -> int:
    """Return the multiply-accumulates that an unmerged adapter adds to a token's, as its modules count them."""
    return sum(getattr(module, "multiply_accumulates", 0) for module in model.modules())

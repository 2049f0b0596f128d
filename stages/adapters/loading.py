"""A model wherever it is to be run: the directory `model/`, or a base with an adapter or a GGUF file's weights.

A recovery with an adapter that can't be merged leaves `adapter/` and no `model/`. A reader of such an artifact also
gets the base, the artifact of the model that the adapter was trained on. recovery.json names the adapter. This file is
the one place where stages that judge a model meet adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.adapters.registry import ADAPTERS
from stages.common.choices import lookup
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model
from stages.decoders.gguf_weights import filled
from stages.decoders.masks import masked_modules
from stages.decoders.spread import spread
from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Source:
    """The directories that a model is loaded from.

    Attributes:
        model: the directory of a model, with config.json and as a rule a tokenizer.
        recovery: the artifact whose `adapter/` is attached to the model; None where there is nothing to attach.
        file: a GGUF file written from the model, whose weights take the place of the model's; None without one.
    """

    model: Path
    recovery: Path | None = None
    file: Path | None = None

    @classmethod
    def of(cls, artifact: Path, base: Path | None = None) -> Source:
        """Return the source of the model in `artifact`; `base` is the artifact of the model that it was made from.

        Raises:
            UserError: the artifact holds only an adapter, and no base is given.
        """
        if base is not None and (artifact / "model.gguf").is_file():
            return cls(base / "model", file=artifact / "model.gguf")
        # Without either directory the path of a model is returned, whose loading says what is missing.
        if (artifact / "model").is_dir() or not (artifact / "adapter").is_dir():
            return cls(artifact / "model")
        if base is None:
            raise UserError(f"{artifact} holds an adapter that can't be merged, and not the model to attach it to.")
        return cls(base / "model", artifact)

    @property
    def weights(self) -> list[Path]:
        """The files that hold the weights."""
        directories = [self.model, *([self.recovery / "adapter"] if self.recovery else [])]
        return [file for directory in directories for file in sorted(directory.glob("*.safetensors"))]

    def load(self, *, dtype: str, device: str = "cpu", cards: Sequence[str] = ()) -> PreTrainedModel:
        """Return the model in evaluation mode, weights and adapter in `dtype`, its layers spread over `cards` if any.

        Raises:
            UserError: a directory is not complete, or the adapter is of another model.
        """
        # On the processor its files are mapped, and each layer then goes straight to its card.
        model = load_model(self.model, dtype=dtype, device="cpu" if cards else device)
        self._attach(model)
        if self.file is not None:
            filled(model, self.file)
        return spread(model.eval(), cards) if cards else model.eval()

    def _attach(self, model: PreTrainedModel) -> None:
        if self.recovery is None:
            return
        name = read_json(self.recovery / "recovery.json")["adapter"]["name"]
        adapter = lookup("adapter", name, ADAPTERS)
        if adapter.load is None:
            raise UserError(f"{self.recovery}: adapter '{name}' is no adapter that is loaded. Build it again.")
        adapter.load(model, self.recovery / "adapter", masked_modules(self.model))


def added_multiply_accumulates(model: PreTrainedModel) -> int:
    """Return the multiply-accumulates a token that an unmerged adapter adds, as its modules count them."""
    return sum(getattr(module, "multiply_accumulates", 0) for module in model.modules())

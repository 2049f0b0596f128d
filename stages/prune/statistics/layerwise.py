"""A decoder run one layer at a time: all calibration sequences pass a layer before the next layer is touched.

So activations and weights are needed of one layer at a time. Besides its input, a layer gets the arguments that the
model itself would give it: masks, and rotary angles, which differ by layer in some families.

Shape legend: B sequences, T tokens, H hidden channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from stages.prune.memory.resident import Resident, always
from stages.prune.memory.sizes import BATCH_TOKENS as BATCH_TOKENS
from stages.prune.memory.sizes import LOGITS
from stages.prune.statistics.products import FastProducts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NONE: Mapping[str, Tensor] = MappingProxyType({})


class Gathered:
    """Batches of sequences that are put together as they come: the whole is in memory once, and never in pieces."""

    def __init__(self, sequences: int) -> None:
        """Expect so many sequences in all."""
        self.sequences, self._filled = sequences, 0
        self._whole: Tensor | None = None

    def add(self, batch: Tensor) -> None:
        """Take the next sequences, [b, …]."""
        if self._whole is None:
            self._whole = batch.new_empty((self.sequences, *batch.shape[1:]))
        end = self._filled + len(batch)
        self._whole[self._filled : end] = batch
        self._filled = end

    def whole(self) -> Tensor:
        """Return all sequences, [sequences, …].

        Raises:
            ValueError: some are missing.
        """
        if self._whole is None or self._filled != self.sequences:
            raise ValueError(f"{self._filled} of {self.sequences} sequences were added")
        return self._whole


class Layerwise:
    """A decoder on calibration sequences `ids_BT`, layer by layer.

    Attributes:
        layers: the decoder's layers.
        resident: holds a layer's weights in memory while it is needed; does nothing where they always are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids_BT: Tensor,
        *,
        resident: Resident = always,
        products_in: str = "float32",
    ) -> None:
        """Take the decoder of `model`. A float32 model multiplies in `products_in` while `run` runs a layer."""
        lowered = products_in != "float32" and model.dtype == torch.float32
        self.products_in = getattr(torch, products_in) if lowered else None
        self.model, self.ids_BT, self.resident = model, ids_BT, resident
        self.layers: list[Any] = list(model.get_decoder().layers)
        self.batch = max(1, BATCH_TOKENS // ids_BT.shape[1])
        self._given = self._capture()

    @torch.no_grad()
    def embedded(self) -> Tensor:
        """Return the first layer's input, [B, T, H]."""
        return torch.cat([self.embed(ids) for ids in torch.split(self.ids_BT, self.batch)])

    @torch.no_grad()
    def run(self, index: int, hidden_BTH: Tensor) -> Tensor:
        """Return the output of layer `index` for its input [B, T, H]."""
        with self.resident(index), self.products(hidden_BTH.device.type):
            after = Gathered(len(hidden_BTH))
            for part in torch.split(hidden_BTH, self.batch):
                after.add(self.layer(index, part))
            return after.whole()

    @contextmanager
    def products(self, device: str) -> Iterator[None]:
        """Make matrix products in the block as `run` makes them."""
        with FastProducts(), torch.autocast(device, self.products_in, enabled=self.products_in is not None):
            yield

    def run_from(self, index: int, hidden_BTH: Tensor) -> Tensor:
        """Return the last layer's output for the input [B, T, H] of layer `index`."""
        for later in range(index, len(self.layers)):
            hidden_BTH = self.run(later, hidden_BTH)
        return hidden_BTH

    @torch.no_grad()
    def losses(self, hidden_BTH: Tensor) -> Tensor:
        """Return each sequence's mean next-token cross-entropy [B] in nats, from the last layer's output [B, T, H]."""
        found = []
        count = max(1, LOGITS // (self.ids_BT.shape[1] * self.model.config.vocab_size))
        for ids, hidden in zip(torch.split(self.ids_BT, count), torch.split(hidden_BTH, count), strict=True):
            with FastProducts():
                logits = self.logits(ids, hidden)[:, :-1].float()
            nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            found.append(nats.view(len(ids), -1).mean(1))
        return torch.cat(found)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the first layer's input [B, T, H] for these sequences, with its graph where gradients are on."""
        inputs = []

        def keep(index: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
            if index == 0:
                inputs.append(hidden)
            return hidden

        with self._replaced(keep):
            self.model.get_decoder()(ids_BT, use_cache=False)
        return inputs[0]

    def layer(self, index: int, hidden_BTH: Tensor, parameters: Mapping[str, Tensor] = NONE) -> Tensor:
        """Return the output of layer `index`, which is in memory, for its input; with its graph where gradients are on.

        `parameters` replace the layer's parameters, by name.
        """
        # `functional_call` replaces parameters for one call, so that a vector can have a copy for each sequence.
        arguments = ((hidden_BTH,), self._given[index])
        return functional_call(self.layers[index], dict(parameters), *arguments)  # type: ignore[no-any-return]

    def logits(self, ids_BT: Tensor, hidden_BTH: Tensor, parameters: Mapping[str, Tensor] = NONE) -> Tensor:
        """Return the logits [B, T, V] of these sequences from the last layer's output, with their graph.

        `parameters` replace the model's parameters, by name.
        """
        # Layer 0 answers with the given state and the others pass it on: what is left is the final norm and the head,
        # with whatever the model's class does around them.
        with self._replaced(lambda index, hidden, given: hidden_BTH if index == 0 else hidden):
            answer = functional_call(self.model, dict(parameters), (ids_BT,), {"use_cache": False})
        return answer.logits  # type: ignore[no-any-return]

    def _capture(self) -> list[dict[str, Any]]:
        """Return the keyword arguments that the model gives each layer."""
        # One sequence tells them for all: sequences are equally long and without padding.
        captured: list[dict[str, Any]] = [{} for _ in self.layers]

        def keep(index: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
            captured[index] = given
            return hidden

        with self._replaced(keep), torch.no_grad():
            self.model.get_decoder()(self.ids_BT[:1], use_cache=False)
        return captured

    @contextmanager
    def _replaced(self, forward: Callable[[int, Tensor, dict[str, Any]], Tensor]) -> Iterator[None]:
        """Let `forward(index, hidden, keyword arguments)` stand in for every layer within the block."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                stack.enter_context(_replaced(layer, index, forward))
            yield


@contextmanager
def _replaced(layer: nn.Module, index: int, forward: Callable[[int, Tensor, dict[str, Any]], Tensor]) -> Iterator[None]:
    layer.forward = lambda hidden, **given: forward(index, hidden, given)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward  # the attribute of the instance, which hid the method of the class

"""Gradients of the calibration loss, one matrix at a time: each is handed over as it appears and freed at once.

So scoring needs the memory of the weights, of the activations and of the largest matrices, not of a second model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Visit = Callable[[int, Tensor], None]
"""Called with the position of a weight in the given sequence and its gradient."""


def stream_gradients(model: PreTrainedModel, weights: Sequence[Tensor], ids_BT: Tensor, visit: Visit) -> None:
    """Run one forward and backward pass over `ids_BT` and pass each weight's gradient to `visit`, keeping none.

    The loss is the model's own, the mean next-token cross-entropy over all tokens. No other gradient is computed, and
    the model is left as it was. Matrices arrive from the last layer to the first.
    """

    def hand_over(position: int) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            gradient = weight.grad
            weight.grad = None
            if gradient is not None:
                visit(position, gradient)

        return hook

    with _only_these_train(model, weights):
        handles = [w.register_post_accumulate_grad_hook(hand_over(i)) for i, w in enumerate(weights)]  # type: ignore[no-untyped-call]
        try:
            model(ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        finally:
            for handle in handles:
                handle.remove()


def calibration_loss(model: PreTrainedModel, ids_BT: Tensor) -> float:
    """Return the mean next-token cross-entropy of `ids_BT`, in nats.

    Raises:
        UserError: it is not finite; the message names the first layer whose output isn't.
    """
    with torch.no_grad():
        loss = float(model(ids_BT, labels=ids_BT, use_cache=False).loss)
        if math.isfinite(loss):
            return loss
        states = model(ids_BT, use_cache=False, output_hidden_states=True).hidden_states
    places = ["the embeddings", *(f"layer {index}" for index in range(len(states) - 1))]
    broken = (place for place, state in zip(places, states, strict=True) if not state.isfinite().all())
    where = next(broken, "the output projection")
    raise UserError(
        f"the calibration loss is {loss}: {where} gives the first value that is not finite. "
        "Check the checkpoint, or calibrate in another precision with prune.dtype=float32."
    )


@contextmanager
def _only_these_train(model: PreTrainedModel, weights: Sequence[Tensor]) -> Iterator[None]:
    """Let gradients flow to `weights` only, and restore the model's flags afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

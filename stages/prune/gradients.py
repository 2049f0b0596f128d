"""Gradients of the calibration loss that are never held: each weight's is handed over as the factors of a product.

A linear map y = x Wᵀ has ∂L/∂W = Σ (∂L/∂y)ᵀ x over tokens, and an embedding adds ∂L/∂y to the rows of its tokens. So
the weights themselves need no gradient: what a map was given and the gradient of what it gave say everything, and any
block of rows, of all sequences together or of each by itself, is one small product. Scoring then needs the memory of
the weights, of the activations and of a block; and one backward pass serves first and second order alike.

Shape legend: B sequences, T tokens, R rows (outputs) and C columns (inputs) of a weight, H hidden channels, S sequences
kept apart (B, or 1 for all of them together), N tokens of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers.modeling_outputs import BaseModelOutputWithPast

from stages.errors import UserError
from stages.prune.products import FastProducts, slow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 2**22
"""Logits that exist at once (16 MiB in float32), at least those of one sequence."""

Factors = tuple[Tensor, Tensor]
"""What a map was given, and the gradient of what it gave."""


@dataclass(slots=True)
class Gradient:
    """The gradient of one weight, made block by block.

    The loss is the mean over all sequences, so the gradient's parts for single sequences add up to the whole.

    Attributes:
        linear: uses in a linear map: its input [b, T, C], and the gradient of its output [b, T, R].
        embedding: uses as a table: token ids [b, T], and the gradient of the rows looked up [b, T, C].
        vector_BR: the gradient of a vector (a norm's weight), sequence by sequence.
    """

    linear: list[Factors] = field(default_factory=list)
    embedding: list[Factors] = field(default_factory=list)
    vector_BR: Tensor | None = None

    def blocks(self, weight: Tensor, size: int, *, apart: bool) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield rows of the weight and their gradient [S, rows, C] in float32, about `size` numbers at a time.

        S is B where the sequences are to be kept `apart`. Rows that only a table has and no token looked up are left
        out, as their gradient is zero; such a weight's rows come as indices.
        """
        if self.vector_BR is not None:
            vector_SR = self.vector_BR.float() if apart else self.vector_BR.float().sum(0, keepdim=True)
            yield slice(0, len(weight)), vector_SR[..., None]
            return
        sequences = sum(len(given) for given, _ in self.linear or self.embedding) if apart else 1
        step = max(1, size // (sequences * weight.shape[1]))
        table = _joined(self.embedding, apart) if self.embedding else None
        if not self.linear:
            assert table is not None
            for indices in torch.split(torch.unique(table[0]), step):
                yield indices, _looked_up(table, indices)
            return
        linear = _joined(self.linear, apart)
        for start in range(0, len(weight), step):
            rows = slice(start, min(start + step, len(weight)))
            gradient = _product(linear, rows)
            if table is not None:
                gradient += _looked_up(table, torch.arange(rows.start, rows.stop, device=weight.device))
            yield rows, gradient


def _joined(uses: Sequence[Factors], apart: bool) -> Factors:
    """Return the factors of all sequences, [S, N, …]."""
    given, gradient = (torch.cat(side) if len(side) > 1 else side[0] for side in zip(*uses, strict=True))
    if not apart:
        given, gradient = given.flatten(0, 1)[None], gradient.flatten(0, 1)[None]
    return (given.float() if slow(given) else given), gradient


def _product(factors: Factors, rows: slice) -> Tensor:
    """Return the rows of a linear map's gradient, [S, rows, C]."""
    x_SNC, dy_SNR = factors
    return torch.bmm(dy_SNR[..., rows].to(x_SNC.dtype).transpose(1, 2), x_SNC).float()


def _looked_up(factors: Factors, rows: Tensor) -> Tensor:
    """Return the given rows, ascending, of a table's gradient [S, rows, C]: sums over the places of each token."""
    ids_SN, gradient_SNC = factors
    place_SN = torch.searchsorted(rows, ids_SN).clamp(max=len(rows) - 1)
    sequence, token = (rows[place_SN] == ids_SN).nonzero(as_tuple=True)
    sums = gradient_SNC.new_zeros(len(ids_SN), len(rows), gradient_SNC.shape[-1], dtype=torch.float32)
    found = (sequence, place_SN[sequence, token])
    return sums.index_put_(found, gradient_SNC[sequence, token].float(), accumulate=True)


def stream_gradients(
    model: PreTrainedModel, weights: Sequence[Tensor], ids_BT: Tensor, visit: Callable[[int, Gradient], None]
) -> None:
    """Run one forward and backward pass over `ids_BT` and pass `visit` each weight's position and gradient, once whole.

    The loss is the mean next-token cross-entropy over all tokens. `weights` are parameters of the model: matrices of
    linear maps and of embeddings (a tied one gets the sum of its uses), and vectors that scale [B, T, H]. Nothing is
    differentiated below the first of them, and the model is left as it was. Matrices come from the last layer to the
    first.

    Raises:
        ValueError: a weight is used otherwise.
    """
    decoder = model.get_decoder()
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    vectors = {position: _one_each(weight, len(ids_BT)) for position, weight in enumerate(weights) if weight.dim() == 1}
    recorder = _Recorder({id(weight): i for i, weight in enumerate(weights) if weight.dim() > 1}, visit)
    with frozen(model), FastProducts(), recorder:
        swapped = {names[id(weights[position])]: vector for position, vector in vectors.items()}
        hidden_BTH = functional_call(decoder, swapped, (ids_BT,), {"use_cache": False}).last_hidden_state
        with recorder.incomplete():
            gradient_BTH = _through_the_head(model, hidden_BTH, ids_BT)
        if hidden_BTH.requires_grad:
            torch.autograd.backward(hidden_BTH, gradient_BTH)
    for position, vector in vectors.items():
        visit(position, Gradient(vector_BR=None if vector.grad is None else vector.grad[:, 0]))
    if recorder.expected:
        raise ValueError(f"{len(recorder.expected)} weights are used neither in a linear map nor in an embedding")


def _one_each(vector: Tensor, sequences: int) -> Tensor:
    """Return copies of a vector that scale [B, T, R], one a sequence, so that each gets its own gradient: [B, 1, R]."""
    return vector.detach().expand(sequences, 1, -1).clone().requires_grad_()


def _through_the_head(model: PreTrainedModel, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor | None:
    """Return the gradient of the loss with respect to the decoder's output, a few sequences' logits at a time."""
    sequences, tokens = ids_BT.shape
    count = max(1, LOGITS // (tokens * model.config.vocab_size))
    gradients = []
    for hidden, ids in zip(torch.split(hidden_BTH.detach(), count), torch.split(ids_BT, count), strict=True):
        given = hidden.requires_grad_(hidden_BTH.requires_grad)
        with _answering(model.get_decoder(), given):
            logits = model(ids, use_cache=False).logits[:, :-1].float()
        nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        torch.autograd.backward(nats / (sequences * (tokens - 1)))
        gradients.append(given.grad)
    return torch.cat([g for g in gradients if g is not None]) if hidden_BTH.requires_grad else None


class _Recorder(TorchFunctionMode):
    """Keeps the factors of each gradient from forward and backward until all uses of its weight are through.

    Attributes:
        expected: positions by the identity of weights not handed over yet.
    """

    def __init__(self, expected: dict[int, int], visit: Callable[[int, Gradient], None]) -> None:
        super().__init__()
        self.expected, self.visit = expected, visit
        self.found: dict[int, Gradient] = {}
        self.awaited: dict[int, int] = {}
        self.more_to_come = False

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        output = function(*arguments, **(keywords or {}))
        if function in (F.linear, F.embedding) and id(arguments[1]) in self.expected and torch.is_grad_enabled():
            padding = (keywords or {}).get("padding_idx")
            self._watch(id(arguments[1]), function, arguments[0].detach(), output, padding)
        return output

    def _watch(self, weight: int, function: Any, given: Tensor, output: Tensor, padding: int | None) -> None:
        gradient = self.found.setdefault(weight, Gradient())
        uses = gradient.linear if function is F.linear else gradient.embedding
        self.awaited[weight] = self.awaited.get(weight, 0) + 1
        held = [given]  # the hook lives as long as the graph, what the map was given only as long as it is needed

        def take(output_gradient: Tensor) -> None:
            if padding is not None:
                output_gradient = output_gradient * (held[0] != padding)[..., None]
            uses.append((held.pop(), output_gradient))
            self.awaited[weight] -= 1
            if not self.more_to_come:
                self._hand_over(weight)

        if not output.requires_grad:
            output.requires_grad_()  # the first weight of the model: nothing below it is differentiated
        output.register_hook(take)  # type: ignore[no-untyped-call]

    def _hand_over(self, weight: int) -> None:
        if self.awaited[weight] == 0:
            gradient = self.found.pop(weight)
            with torch.no_grad():
                self.visit(self.expected.pop(weight), gradient)
            gradient.linear.clear()  # the hooks, which live as long as the graph, know the lists
            gradient.embedding.clear()

    @contextmanager
    def incomplete(self) -> Iterator[None]:
        """Hold back what looks whole: the block uses some weights again and again."""
        self.more_to_come = True
        yield
        self.more_to_come = False
        for weight in list(self.found):
            self._hand_over(weight)


@contextmanager
def _answering(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Let `decoder` return `hidden`, whatever it is given."""
    decoder.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del decoder.forward


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no parameter have a gradient, and restore the model's flags afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


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

"""Gradients of the calibration loss that are never stored: each weight's is handed over as the factors of a product.

So scoring needs the memory of the weights, of the activations and of a block (`.factors`). One backward pass serves
first and second order alike.

Shape legend: B sequences, T tokens, R numbers of a vector, H hidden channels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.decoders.anatomy import decoder_layers
from stages.errors import UserError
from stages.prune.memory.resident import Resident, always
from stages.prune.memory.sizes import GRAPH, LOGITS, graph_bytes, runs_of
from stages.prune.statistics.factors import Gradient
from stages.prune.statistics.layerwise import Layerwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel


EVERY = slice(None)


def stream_gradients(
    model: PreTrainedModel, weights: Sequence[Tensor], ids_BT: Tensor, visit: Callable[[int, Gradient], None]
) -> None:
    """Run forward and backward over `ids_BT`, and call `visit` with the position and the whole gradient of each weight.

    The loss is the mean next-token cross-entropy over all tokens. `weights` are parameters of the model: matrices of
    linear maps and of embeddings, and vectors that scale [B, T, H]. A tied matrix gets the sum of its uses. Nothing is
    differentiated below the first of the weights, and the model is left as it was. Where activations would take more
    than `GRAPH` bytes, only those between some layers are kept. The backward pass computes the others again.

    Raises:
        ValueError: a weight is used in another way.
    """
    run = Layerwise(model, ids_BT)
    # Matrices are known by identity, because tied ones and parts of fused maps have more than one name.
    vectors = {id(weight): _one_each(weight, len(ids_BT)) for weight in weights if weight.dim() == 1}
    recorder = _Recorder({id(weight): i for i, weight in enumerate(weights) if weight.dim() > 1}, run.layers, visit)
    table = id(model.get_input_embeddings().weight)
    to_the_table = table in recorder.expected
    segments = _segments(run, {id(weight) for weight in weights})
    with frozen(model), recorder:
        inputs = _inputs(run, segments)
        gradient_BTH: Tensor | None = None
        for segment in reversed(segments):
            # Below the first segment only the embedding could want a gradient.
            given = inputs.pop().requires_grad_(to_the_table or segment is not segments[0])
            hidden_BTH = given
            for index in segment:
                hidden_BTH = run.layer(index, hidden_BTH, _replacing(run.layers[index], vectors))
            if segment is segments[-1]:
                gradient_BTH = _through_the_head(run, hidden_BTH, vectors)
                # The head is through. A tied one is also the embedding, whose use comes last.
                recorder.hand_over_others(but=table)
            if hidden_BTH.requires_grad:
                torch.autograd.backward(hidden_BTH, gradient_BTH)
            gradient_BTH = given.grad
        if to_the_table:
            torch.autograd.backward(run.embed(ids_BT), gradient_BTH)
            recorder.hand_over_others()
    # Autograd itself adds up the gradients of vectors, which are small. All their uses have been passed by now.
    for position, weight in enumerate(weights):
        if weight.dim() == 1:
            visit(position, Gradient(vector_BR=vectors[id(weight)].grad[:, 0]))  # type: ignore[index]
    if recorder.expected:
        raise ValueError(f"{len(recorder.expected)} weights are used neither in a linear map nor in an embedding")


def _segments(run: Layerwise, weights: set[int]) -> list[range]:
    """Return the layers from the first that has one of `weights` on, as runs of about `GRAPH` bytes of activations."""
    layers = decoder_layers(run.model)
    first = next((i for i, layer in enumerate(run.layers) if weights & set(map(id, layer.parameters()))), len(layers))
    if id(run.model.get_input_embeddings().weight) in weights:
        first = 0
    sizes = {"hidden": run.model.config.hidden_size, "each": run.model.dtype.itemsize}
    tokens = run.ids_BT.numel()
    held = [tokens * graph_bytes(layer.shape, layer.head_dim, **sizes, inputs=True) for layer in layers[first:]]
    # At least one segment. It is empty where all weights are behind the layers, and the head runs after it even so.
    return [range(first + part.start, first + part.stop) for part in runs_of(held, GRAPH)]


@torch.no_grad()
def _inputs(run: Layerwise, segments: Sequence[range]) -> list[Tensor]:
    """Return the input [B, T, H] of each segment's first layer."""
    hidden_BTH, found = run.embedded(), []
    for index in range(segments[-1].start + 1):
        if any(index == segment.start for segment in segments):
            found.append(hidden_BTH)
        if index < segments[-1].start:
            hidden_BTH = run.run(index, hidden_BTH)
    return found


def _one_each(vector: Tensor, sequences: int) -> Tensor:
    """Return copies of a vector that scale [B, T, R], one for each sequence to have its own gradient: [B, 1, R]."""
    return vector.detach().expand(sequences, 1, -1).clone().requires_grad_()


def _replacing(module: nn.Module, vectors: Mapping[int, Tensor], part: slice = EVERY) -> dict[str, Tensor]:
    """Return the replacements of the module's vectors, by name, for a part of the sequences."""
    return {name: vectors[id(own)][part] for name, own in module.named_parameters() if id(own) in vectors}


def _through_the_head(run: Layerwise, hidden_BTH: Tensor, vectors: Mapping[int, Tensor]) -> Tensor | None:
    """Return the gradient of the loss with respect to the last layer's output; None where that output has none.

    The logits of a few sequences exist at a time.
    """
    sequences, tokens = run.ids_BT.shape
    count = max(1, LOGITS // (tokens * run.model.config.vocab_size))
    gradients = []
    for start in range(0, sequences, count):
        part = slice(start, start + count)
        # Detached, so that this backward pass ends here and frees the logits, and the layers are passed once.
        ids, hidden = run.ids_BT[part], hidden_BTH[part].detach().requires_grad_(hidden_BTH.requires_grad)
        logits = run.logits(ids, hidden, _replacing(run.model, vectors, part))[:, :-1].float()
        nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        torch.autograd.backward(nats / (sequences * (tokens - 1)))
        gradients.append(hidden.grad)
    return torch.cat([g for g in gradients if g is not None]) if hidden_BTH.requires_grad else None


class _Recorder(TorchFunctionMode):
    """Records the factors of each gradient, from forward and backward, until its weight can be handed over.

    A weight of a layer is handed over once backward has passed all its uses so far. Any other weight is handed over
    when the caller says so. A function mode, and not hooks of modules, sees every use of a weight, whatever the module.

    Attributes:
        expected: positions of the weights that are not handed over yet, by identity.
    """

    def __init__(
        self, expected: dict[int, int], layers: Iterable[nn.Module], visit: Callable[[int, Gradient], None]
    ) -> None:
        super().__init__()
        self.expected, self.visit = expected, visit
        self.in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self.found: dict[int, Gradient] = {}
        self.awaited: Counter[int] = Counter()

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        output = function(*arguments, **(keywords or {}))
        # Passes without gradients only compute inputs of segments, and no backward pass will come to them.
        if function in (F.linear, F.embedding) and id(arguments[1]) in self.expected and torch.is_grad_enabled():
            padding = (keywords or {}).get("padding_idx")
            self._watch(id(arguments[1]), function, arguments[0].detach(), output, padding)
        return output

    def _watch(self, weight: int, function: Any, given: Tensor, output: Tensor, padding: int | None) -> None:
        gradient = self.found.setdefault(weight, Gradient())
        uses = gradient.linear if function is F.linear else gradient.embedding
        self.awaited[weight] += 1
        held = [given]  # the hook lives as long as the graph, what the map was given only as long as it is needed

        def take(output_gradient: Tensor) -> None:
            if padding is not None:  # torch gives the row of the padding token no gradient
                output_gradient = output_gradient * (held[0] != padding)[..., None]
            uses.append((held.pop(), output_gradient))
            self.awaited[weight] -= 1
            if weight in self.in_layers and not self.awaited[weight]:
                self._hand_over(weight)

        if not output.requires_grad:
            output.requires_grad_()  # the first weight of the model: nothing below it is differentiated
        output.register_hook(take)  # type: ignore[no-untyped-call]

    def _hand_over(self, weight: int) -> None:
        gradient = self.found.pop(weight)
        with torch.no_grad():
            self.visit(self.expected.pop(weight), gradient)
        gradient.linear.clear()  # the hooks, which live as long as the graph, know the lists
        gradient.embedding.clear()

    def hand_over_others(self, but: int | None = None) -> None:
        """Hand over the used weights that are outside the layers, except the one whose identity is `but`."""
        for weight in set(self.found) - self.in_layers - {but}:
            self._hand_over(weight)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no parameter require a gradient within the block, with gradients enabled; restore the flags afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def calibration_loss(model: PreTrainedModel, ids_BT: Tensor, resident: Resident = always) -> float:
    """Return the mean next-token cross-entropy of `ids_BT`, in nats.

    Raises:
        UserError: the loss is not finite; the message names the first layer whose output isn't.
    """
    loss = LayerwiseLoss(Layerwise(model, ids_BT, resident=resident))
    for index in range(len(loss.run.layers)):
        loss.through(index)
    return loss.value()


class LayerwiseLoss:
    """The mean next-token cross-entropy of a run's sequences while they pass one layer after the other.

    So the caller can change a layer before the sequences pass it. Of the sequences one state is held, [B, T, H].
    """

    def __init__(self, run: Layerwise) -> None:
        """Begin with the embeddings of the sequences of `run`."""
        self.run, self.hidden_BTH = run, run.embedded()
        self.where = "" if self.hidden_BTH.isfinite().all() else "the embeddings"

    def through(self, index: int) -> None:
        """Let the sequences pass layer `index`, which comes next."""
        self.hidden_BTH = self.run.run(index, self.hidden_BTH)
        self.where = self.where or ("" if self.hidden_BTH.isfinite().all() else f"layer {index}")

    def value(self) -> float:
        """Return the loss in nats, once all layers have been passed.

        Raises:
            UserError: it is not finite; the message names the first layer whose output isn't.
        """
        loss = float(self.run.losses(self.hidden_BTH).mean())
        if math.isfinite(loss):
            return loss
        raise UserError(
            f"the calibration loss is {loss}: {self.where or 'the output projection'} gives the first value that is "
            "not finite. Check the checkpoint, or calibrate in another precision with prune.dtype=float32."
        )

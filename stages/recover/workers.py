"""The workers of one recovery: the interface that the training loop uses, for one process and for several.

Every worker draws the same documents and cuts them into the same micro-batches. Each micro-batch has the same random
numbers on every worker. So the number of workers affects only rounding.

Workers stay in step by telling each other the results of each step (`on_each`). So a loss that is not finite, a
micro-batch that does not fit, and a signal are met by all of them at the same place. Only the leader writes.

How the processes are started is `.launch`'s part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.recover.interruption import Signalled, deferred_signals
from stages.recover.memory import OutOfMemory
from stages.recover.sharding import shard
from stages.rows.packing import Document, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Turn:
    """One worker's part in one round of micro-batches."""

    index: int
    """Index of the micro-batch in its step; its random numbers come from it."""
    documents: list[Document]
    """The documents that this worker runs; empty where it has nothing to do and need not take part in the pass."""
    weight: float
    """Weight of the loss: 1, or 0 where the worker only takes part in the pass of the others."""
    everyones: list[Document]
    """The documents that all workers run in this round."""


class Workers:
    """One process, which is its own leader; also the interface of several."""

    count = 1
    leads = True

    def prepare(self, model: PreTrainedModel, device: str) -> None:
        """Share the model, with its adapter attached, among the workers; its parameters may be other objects then."""

    def forward(self, work: Callable[[], Done]) -> Done:
        """Return the result of `work`, which runs the model; a backward pass follows."""
        return work()

    def asked(self, work: Callable[[], Done]) -> Done:
        """Return the result of `work`, which runs the model without gradients."""
        return work()

    def turns(self, parts: Sequence[list[Document]]) -> Iterator[Turn]:
        """Yield this worker's turns at a step's micro-batches; each micro-batch runs once, on one worker."""
        return (Turn(index, part, 1.0, part) for index, part in enumerate(parts))

    def on_each(self, work: Callable[[], Done]) -> list[Done]:
        """Return on every worker the results of `work` on all of them, the leader's first; numbers, JSON, documents.

        Raises:
            OutOfMemory: on all workers, the error of the first worker on which `work` did not fit.
        """
        return [work()]

    def leaves(self, signalled: Signalled) -> bool:
        """Return whether this worker leaves its step before its next turn, because of a signal.

        It asks no other worker. So the others finish their turns, and then the step is dropped by all.
        """
        return signalled() is not None

    def add_gradients(self) -> None:
        """Make each gradient the mean of those that the workers have accumulated."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Return the whole of a parameter, or of a tensor that belongs to one; all workers must call this."""
        return tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return this worker's piece of a whole tensor, on the device of the parameter `like`."""
        return whole.to(like.device)

    def gather(self, model: PreTrainedModel, *, frozen: bool) -> None:
        """Make the trained parameters of the leader's model whole, with `frozen` all of them; it runs no more."""

    def signals(self) -> AbstractContextManager[Signalled]:
        """Hold back SIGTERM and SIGINT; yields a function that all workers call together, to learn whether one came."""
        return deferred_signals()


SINGLE = Workers()


class Replicated(Workers):
    """Whole copies of the model, kept equal by adding up gradients, once a step and in one flat buffer.

    Micro-batches accumulate their gradients on each worker alone. So a worker may have nothing to do, and all workers
    can try again together when one runs out of memory. The price is that communication does not overlap the last
    backward pass. That costs little, because gradients are an adapter's.
    """

    def __init__(self, rank: int, count: int, told: Signalled) -> None:
        """Join the existing process group; `told` returns the signal that the starting process passed on."""
        self.rank, self.count, self.leads, self._told = rank, count, rank == 0, told

    @torch.no_grad()
    def prepare(self, model: PreTrainedModel, device: str) -> None:
        """Make all copies the leader's."""
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for tensor in (*model.parameters(), *model.buffers()):
            torch.distributed.broadcast(tensor, src=0)

    def turns(self, parts: Sequence[list[Document]]) -> Iterator[Turn]:
        """Yield rounds of about equally long micro-batches, because a round takes as long as its longest."""
        order = sorted(range(len(parts)), key=lambda index: -tokens_of(parts[index]))
        for start in range(0, len(order), self.count):
            indices = order[start : start + self.count]
            everyones = [document for index in indices for document in parts[index]]
            if self.rank < len(indices):
                yield Turn(indices[self.rank], parts[indices[self.rank]], 1.0, everyones)
            else:
                yield Turn(indices[0], self._company(everyones), 0.0, everyones)

    def _company(self, everyones: list[Document]) -> list[Document]:
        return []

    def on_each(self, work: Callable[[], Done]) -> list[Done]:
        """Return the results of `work` on all workers."""
        found: Any
        try:
            found = work()
        except OutOfMemory as error:
            found = self._failure(error)
        everyones: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(everyones, found)
        for other in everyones:
            if isinstance(other, _Failure):
                raise OutOfMemory(other.reason, tokens=other.tokens, alone=other.alone)
        return everyones

    def _failure(self, error: OutOfMemory) -> _Failure:
        return _Failure(str(error), error.tokens, error.alone)

    def leaves(self, signalled: Signalled) -> bool:
        """Return whether this worker was told of a signal."""
        return self._told() is not None

    def add_gradients(self) -> None:
        """Add up the gradients of all workers in one call, and leave their mean."""
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._trained]
        flat = torch.cat([gradient.flatten() for gradient in own])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for parameter, mean in zip(self._trained, torch.split(flat, [each.numel() for each in own]), strict=True):
            parameter.grad = mean.view_as(parameter)

    @contextmanager
    def signals(self) -> Iterator[Signalled]:
        """Yield a function that returns the signal that the leader was told of, or None."""
        # Of the leader alone: the workers hear of a signal at different times, and have to stop at the same place.
        yield lambda: self.on_each(self._told)[0]


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    tokens: int
    alone: bool


class _Frame(nn.Module):
    """The root module of a sharded model; its forward pass is the given function, which runs the model inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class Sharded(Replicated):
    """A piece of every weight and gradient on each worker; weights are gathered layer by layer as they run (FSDP).

    All workers have to take part in every pass. So a worker without a micro-batch runs a document whose loss has weight
    zero. A worker that runs out of memory ends the recovery.
    """

    def prepare(self, model: PreTrainedModel, device: str) -> None:
        """Shard each layer of `model`, and the rest as one piece, onto `device`.

        Raises:
            UserError: the model has masks, and its own weights are trained.
        """
        # Such hooks keep the masks of trained weights (`stages.adapters.full`). They would see pieces of a gradient.
        if any(parameter._post_accumulate_grad_hooks for parameter in model.parameters()):
            raise UserError("weights with a mask can't be sharded while they are trained. Set runtime=ddp.")
        self._frame: Any = _Frame(model)
        self._sharded = shard(self._frame, model.get_decoder().layers, device)

    def forward(self, work: Callable[[], Done]) -> Done:
        """Return the result of `work`, within which embeddings and head are whole, and each layer while it runs."""
        done: Done = self._frame(work)
        return done

    def asked(self, work: Callable[[], Done]) -> Done:
        """Return the result of `work`, after which embeddings and head are in pieces again."""
        done: Done = self._frame(work)
        # Torch leaves them whole for a backward pass, and without one they would miss what the pieces become.
        self._frame.reshard()
        return done

    def _company(self, everyones: list[Document]) -> list[Document]:
        return [min(everyones, key=lambda document: len(document.ids))]

    def _failure(self, error: OutOfMemory) -> NoReturn:
        # The other workers wait for this one in the middle of a pass, so there is no way to tell them.
        raise UserError(
            f"{error.tokens:,} tokens at a time do not fit in a worker's memory ({error}). Lower "
            "recover.micro_batch_tokens; with runtime=ddp that is done by itself."
        ) from error

    def leaves(self, signalled: Signalled) -> bool:
        """Return no, because the others' passes need this worker; the step is finished."""
        return False

    def add_gradients(self) -> None:
        """Do nothing, because each backward pass has taken the mean."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Return the tensor gathered from all workers."""
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return this worker's piece of `whole`, cut as the parameter `like` is."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if whole.dim() == 0 or not isinstance(like, DTensor):
            return whole.to(like.device)
        # Every worker has the whole, so nothing is sent.
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def gather(self, model: PreTrainedModel, *, frozen: bool) -> None:
        """Put whole parameters, on the processor, in the place of the pieces."""
        for module in self._sharded:
            module.reshard()
        # By piece, so that tied parameters stay one parameter.
        wholes: dict[nn.Parameter, nn.Parameter | None] = {}
        for module in list(model.modules()):
            for name, piece in list(module.named_parameters(recurse=False)):
                if not (frozen or piece.requires_grad):
                    continue
                if piece not in wholes:
                    whole = self.whole(piece.detach())
                    # The others take part, and keep nothing.
                    wholes[piece] = nn.Parameter(whole.cpu(), piece.requires_grad) if self.leads else None
                if self.leads:
                    setattr(module, name, wholes[piece])


ENGINE = {"ddp": Replicated, "fsdp": Sharded}

"""One recovery on several processes: what the training loop asks of them, and what one process answers.

Every worker draws the same documents, cuts them into the same micro-batches and has the same random numbers for each,
so how many there are changes nothing but rounding. They stay in step by telling each other what each micro-batch gave
(`on_each`): a loss that is not finite, a micro-batch that does not fit or a signal is met by all of them at the same
place. Only the leader writes.

Does not own how the processes are started (`.launch`).
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
from stages.rows.packing import Document

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Turn:
    """One worker's part in one round of micro-batches."""

    index: int
    """Of the micro-batch in its step: its random numbers come from it."""
    documents: list[Document]
    """What this worker runs; none where it has nothing to do and nobody needs its company."""
    weight: float
    """1, or 0 where it only keeps the others company."""
    everyones: list[Document]
    """What all workers run in this round."""


class Workers:
    """One process, which is its own leader."""

    count = 1
    leads = True

    def prepare(self, model: PreTrainedModel) -> None:
        """Share the model, its adapter attached, among the workers; parameters may be other objects afterwards."""

    def forward(self, work: Callable[[], Done]) -> Done:
        """Return what `work`, which runs the model, returns."""
        return work()

    def turns(self, parts: Sequence[list[Document]]) -> Iterator[Turn]:
        """Yield what this worker runs of a step's micro-batches: each one once, on one worker."""
        return (Turn(index, part, 1.0, part) for index, part in enumerate(parts))

    def on_each(self, work: Callable[[], Done]) -> list[Done]:
        """Return what `work` returned on each worker, the leader's first, to all of them: numbers and JSON only.

        Raises:
            OutOfMemory: of the first worker on which `work` did not fit, on all of them.
        """
        return [work()]

    def add_gradients(self) -> None:
        """Make each gradient the mean over workers of what they have accumulated."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a parameter, or a tensor that goes with one, not as this worker's piece; all workers must ask."""
        return tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return this worker's piece of a whole tensor, on the device of the parameter `like`."""
        return whole.to(like.device)

    def gather(self, model: PreTrainedModel, *, frozen: bool) -> None:
        """Make the trained parameters of the leader's model whole, and the `frozen` ones too; it runs no more."""

    def signals(self) -> AbstractContextManager[Signalled]:
        """Hold back SIGTERM and SIGINT; yields a function with which all workers ask together whether one came."""
        return deferred_signals()


SINGLE = Workers()


class _Frame(nn.Module):
    """The root module that DDP and FSDP wrap: its forward pass is whatever runs the model inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class Replicated(Workers):
    """Whole copies of the model, kept equal by adding up gradients (DDP), once a step.

    Micro-batches accumulate their gradients on each worker alone; an empty pass then lets DDP add them up. So a worker
    may have nothing to do, and one that runs out of memory leaves the others able to try again with it. What is given
    up, communication during the last backward pass, is little: gradients are an adapter's.
    """

    def __init__(self, rank: int, count: int, told: Signalled) -> None:
        """Join the process group that is already there; `told` is the signal that whoever started us passed on."""
        self.rank, self.count, self.leads, self._told = rank, count, rank == 0, told

    def prepare(self, model: PreTrainedModel) -> None:
        """Wrap `model` in accelerate's DDP, which makes all copies the leader's."""
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=model.device.type == "cpu")
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._frame = accelerator.prepare_model(_Frame(model))

    def turns(self, parts: Sequence[list[Document]]) -> Iterator[Turn]:
        """Yield rounds of about equally long micro-batches, because a round takes as long as its longest."""
        order = sorted(range(len(parts)), key=lambda index: -_tokens(parts[index]))
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
        """Return what `work` returned on each worker."""
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

    def add_gradients(self) -> None:
        """Run the empty pass: its gradients are zeros, and DDP takes the mean of zeros plus what has accumulated."""
        zero: Tensor = self._frame(lambda: sum(parameter.sum() for parameter in self._trained) * 0.0)
        zero.backward()  # type: ignore[no-untyped-call]

    @contextmanager
    def signals(self) -> Iterator[Signalled]:
        """Yield a function that returns what the leader was told."""
        yield lambda: self.on_each(self._told)[0]


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    tokens: int
    alone: bool


class Sharded(Replicated):
    """A piece of every weight and gradient on each worker, gathered layer by layer as it is run (FSDP).

    By torch's `fully_shard`, which accelerate's FSDP is made of: accelerate itself shards on accelerators only. Every
    pass is a collective one, so a worker without a micro-batch runs a document whose loss has weight zero, and memory
    that gives out on one worker ends the recovery.
    """

    def prepare(self, model: PreTrainedModel) -> None:
        """Shard each layer of `model`, and the rest as one piece.

        Raises:
            UserError: zeros of weights that are trained themselves would have to stay.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if any(parameter._post_accumulate_grad_hooks for parameter in model.parameters()):
            raise UserError("weights with a mask can't be sharded while they are trained. Set runtime=ddp.")
        mesh = init_device_mesh(model.device.type, (self.count,))
        self._frame = _Frame(model)
        self._sharded = [*model.get_decoder().layers, self._frame]
        for module in self._sharded:
            fully_shard(module, mesh=mesh)
        for module in self._sharded:
            # What the weights are gathered in is made by the first gathering, and must not be made in inference mode.
            module.unshard()
            module.reshard()

    def forward(self, work: Callable[[], Done]) -> Done:
        """Return what `work` returns, in which embeddings and head are whole, and each layer when it is run."""
        done: Done = self._frame(work)
        return done

    def _company(self, everyones: list[Document]) -> list[Document]:
        return [min(everyones, key=lambda document: len(document.ids))]

    def _failure(self, error: OutOfMemory) -> NoReturn:
        # The others wait for this one in the middle of a pass, and can't be told.
        raise UserError(
            f"{error.tokens:,} tokens at a time do not fit in a worker's memory ({error}). Lower "
            "recover.micro_batch_tokens; with runtime=ddp that is done by itself."
        ) from error

    def add_gradients(self) -> None:
        """Do nothing: each backward pass has taken the mean."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Return the tensor gathered."""
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return the piece of `whole` that corresponds to that of `like`."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if whole.dim() == 0 or not isinstance(like, DTensor):
            return whole.to(like.device)
        # Every worker has the whole, so nothing is sent.
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def gather(self, model: PreTrainedModel, *, frozen: bool) -> None:
        """Put whole parameters, on the processor, in the place of the pieces."""
        for module in self._sharded:
            module.reshard()
        wholes: dict[nn.Parameter, nn.Parameter] = {}
        for module in list(model.modules()):
            for name, piece in list(module.named_parameters(recurse=False)):
                if not (frozen or piece.requires_grad):
                    continue
                if piece not in wholes:
                    wholes[piece] = nn.Parameter(self.whole(piece.detach()).cpu(), piece.requires_grad)
                if self.leads:
                    setattr(module, name, wholes[piece])


def _tokens(documents: Sequence[Document]) -> int:
    return sum(len(document.ids) for document in documents)


ENGINE = {"ddp": Replicated, "fsdp": Sharded}

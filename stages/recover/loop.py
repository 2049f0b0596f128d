"""The training loop: micro-batches, steps and the curve.

This file owns the order of events. Other files own their parts: the documents of a step (`.drawing`), the shape of a
batch (`stages.rows.packing`), the loss (`.objectives`), the learning rate (`.schedules`), the trained parameters
(`stages.adapters`), the measurements of a point of the curve (`.curve`), the storage of a checkpoint (`.checkpoints`),
the work of each process (`.workers`), and the messages about too little memory (`.memory`) and about numbers that are
not finite (`.divergence`).

Notable:

* the loss is divided by the labelled tokens of the whole step, so the cut of a step into micro-batches affects only
  rounding;
* nothing waits for the device in the middle of a step. Losses are read once, with the norm of the gradient, and before
  the optimizer has used the gradient;
* the best parameters (`keep=best`) are copied where the curve is measured, and put back after the last step;
* dropout's random numbers come from (seed, step, micro-batch). So a resumed run needs no random state, and any worker
  can run a micro-batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stages.adapters.cast import Casts
from stages.common.machine import release_memory
from stages.common.progress import progress as progress_bar
from stages.decoders.architecture import DTYPES
from stages.decoders.kernels import use_fused_kernels
from stages.decoders.packed_attention import hidden_states, shares_beginnings
from stages.errors import Diverged
from stages.recover import checkpoints, memory
from stages.recover.checkpoints import Progress
from stages.recover.compiled import compile_layers
from stages.recover.config import RecoverConfig
from stages.recover.divergence import diverged
from stages.recover.drawing import Drawn, steps
from stages.recover.interruption import Signalled, leave
from stages.recover.losses import Losses, read
from stages.recover.schedules import learning_rate
from stages.recover.seeds import seeded
from stages.recover.workers import SINGLE, Turn, Workers
from stages.rows.packing import Batch, Document, collate, split, tokens_of
from stages.rows.tokens import Tokenised
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.recover.objectives.objective import Rewrite, Summed

log = logging.getLogger(__name__)

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Passed:
    """A step whose gradients are there, but have not been used."""

    turns: Sequence[Turn]
    losses: Sequence[Losses]
    """Losses of each worker."""
    labels: int


@dataclass(kw_only=True)
class Training:
    """One recovery in progress; `run` takes it to its end.

    Attributes:
        model: the frozen model with an adapter attached; parameters that require a gradient are trained.
        objective: returns the summed loss of a batch (`stages.recover.objectives`).
        stream: the documents to train on.
        measure: scores held-out rows for a point of the curve, with the given number of tokens at a time; has no effect
            on the training.
        config: the options of the training.
        dtype: precision of the computation, "float32" or "bfloat16".
        seed: the seed of dropout.
        context: device, output directory, log and time between checkpoints.
        identity: a run resumes only from a checkpoint with an equal identity.
        rewrite: returns the documents to train a step on, from those that were drawn for it; None: those themselves.
        rates: the factor on the learning rate of each parameter that has its own factor, by name.
        workers: the processes that share the work, which have shared the model (`Workers.prepare`); all of them run the
            same `Training`.
    """

    model: PreTrainedModel
    objective: Summed
    stream: Tokenised
    measure: Callable[[int], JSON]
    config: RecoverConfig
    dtype: str
    seed: int
    context: Context
    identity: JSON
    rewrite: Rewrite | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    workers: Workers = SINGLE
    parameters: dict[str, torch.nn.Parameter] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    casts: Casts = field(init=False)
    ahead: tuple[list[Document], Batch] | None = field(init=False, default=None)
    progress: Progress = field(init=False)
    best: dict[str, torch.Tensor] = field(init=False, default_factory=dict)
    saved_at: float = field(init=False, default_factory=time.monotonic)
    saved_step: int | None = field(init=False, default=None)
    saving: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.config.compile:
            compile_layers(self.model)
        elif torch.device(self.context.device).type == "cuda":
            use_fused_kernels(self.model)
        self.parameters = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        # A compiled layer casts by itself, in kernels that do other work too.
        self.casts = Casts.of(self.model, DTYPES["float32" if self.config.compile else self.dtype])
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        if self.config.gradient_checkpointing:
            # torch's reentrant kind loses gradients where the input needs none, as that of a frozen first layer.
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameters by the factor on their learning rate."""
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, value in self.parameters.items():
            groups.setdefault(self.rates.get(name, 1.0), []).append(value)
        return [{"params": values, "factor": factor} for factor, values in groups.items()]

    def run(self) -> Progress:
        """Train to the end of the budget, from the newest checkpoint if there is one.

        The model then holds the parameters that `config.keep` asks for.

        Raises:
            Diverged: the loss or its gradient is not finite; a checkpoint of the last whole step is left.
            UserError: a single document does not fit in memory.
            SystemExit, KeyboardInterrupt: after SIGTERM or SIGINT, with a checkpoint of the last whole step.
        """
        self.progress = checkpoints.resume(
            self.context.output, self.parameters, self.optimizer, self.identity, self.best, self.workers
        )
        # A resumed run logs the curve again from its beginning: its tracker has not seen it.
        for point in self.progress.history:
            self.context.log(point)
            self.saved_step = self.progress.step
        if not self.progress.history:
            self._record({"step": 0, "tokens": 0} | self._measured())
        bar = progress_bar(
            "recover",
            total=self.config.tokens,
            unit="tok",
            initial=self.progress.tokens,
            scale=True,
            silent=not self.workers.leads,
        )
        with self.workers.signals() as signalled, bar:
            coming = steps(self.stream, self.config, self.progress)
            drawn = next(coming, None)
            while drawn is not None and signalled() is None:
                trained = self._rewritten(drawn.documents)
                passed = self._fitting(partial(self._accumulate, trained, signalled, drawn.beyond))
                if passed is None:
                    continue
                # Before the losses are read, because the device still works.
                following = next(coming, None)
                self._collate_ahead(following)
                self._finish_step(drawn, trained, passed, bar)
                drawn = following
            if (number := signalled()) is not None:
                self._checkpoint()
                leave(number)
        for name, tensor in self.best.items():
            self.parameters[name].data.copy_(self.workers.placed(tensor, self.parameters[name]))
        return self.progress

    def _rewritten(self, drawn: list[Document]) -> list[Document]:
        """Return the documents that the coming step is trained on."""
        if self.rewrite is None:
            return drawn
        # The leader's, because rounding could let other workers write others.
        return self.workers.on_each(partial(self.rewrite, drawn, self.progress.step))[0]

    def _fitting(self, work: Callable[[int], Done]) -> Done:
        """Return the result of `work` with as many tokens at a time as fit in memory; each failure halves them."""
        while True:
            try:
                return work(self.progress.micro_batch_tokens or self.config.micro_batch_tokens)
            except memory.OutOfMemory as error:
                self.progress.micro_batch_tokens = tokens = memory.halved(error)
                said = "%d tokens at a time do not fit in memory (%s): going on with %d; the global batch stays."
                log.warning(said, error.tokens, error, tokens)
            # Behind the `except` block, whose error holds the tensors of the failed pass.
            release_memory()

    def _accumulate(self, documents: list[Document], signalled: Signalled, beyond: float, tokens: int) -> Passed | None:
        """Add up the gradients of one step's documents, `tokens` at a time.

        Returns their losses, or None if a signal came first. After a signal the step is dropped, and a resumed run
        takes it from its beginning.
        """
        turns = self._turns(documents, beyond, tokens)
        labels = max(sum(document.labels for document in documents), 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        everyones = self.workers.on_each(partial(self._passes, turns, labels, signalled))
        whole = [losses for losses in everyones if losses is not None]
        if len(whole) < len(everyones):
            return None
        self.workers.add_gradients()
        return Passed(turns, whole, labels)

    def _turns(self, documents: list[Document], beyond: float, tokens: int) -> list[Turn]:
        """Return this worker's micro-batches of a step."""
        # A step ends with a whole document, and so goes beyond its share. That must not cost another micro-batch: each
        # may go beyond in proportion, unless memory has run out.
        if self.progress.micro_batch_tokens is None:
            tokens = math.ceil(tokens * beyond)
        return list(self.workers.turns(split(documents, tokens, among=self.workers.count)))

    def _collate_ahead(self, drawn: Drawn | None) -> None:
        """Collate the first micro-batch of a coming step, unless its documents are still to be rewritten."""
        if drawn is None or self.rewrite is not None:
            return
        tokens = self.progress.micro_batch_tokens or self.config.micro_batch_tokens
        first = self._turns(drawn.documents, drawn.beyond, tokens)[0].documents
        self.ahead = (first, self._collated(first)) if first else None

    def _passes(self, turns: Sequence[Turn], labels: int, signalled: Signalled) -> Losses | None:
        """Run this worker's turns at a step; returns their losses, or None if a signal came first."""
        found = []
        with self.casts.step():
            for turn in turns:
                if self.workers.leaves(signalled):
                    return None
                found.append(self._take(turn, labels))
                self.casts.collect()
        losses = Losses.of(found)
        return losses if self.workers.count == 1 else losses.sent()

    def _take(self, turn: Turn, labels: int) -> Mapping[str, torch.Tensor]:
        """Accumulate the gradients of a micro-batch; returns its summed loss and the parts of it, in nats."""
        part = turn.documents
        if not part:
            return {}
        with (
            seeded(self.seed, self.progress.step, turn.index),
            memory.noticed(tokens=tokens_of(part), alone=len(part) == 1),
        ):
            summed = self.workers.forward(partial(self._summed, part))
            # The gradient is the mean over workers, and should be the sum.
            (turn.weight * summed["loss"] / (labels / self.workers.count)).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in summed.items()} if turn.weight else {}

    def _finish_step(self, drawn: Drawn, trained: list[Document], passed: Passed, bar: Any) -> None:
        """Clip, update the adapter, and record what the step did."""
        # Prompts and labels alike are tokens of the budget; the last step may go beyond it. The budget counts rows, so
        # that the steps and their rates are the same whatever an objective makes of the rows.
        before, tokens = self.progress.tokens, drawn.tokens
        rate = learning_rate(self.config, (before + tokens) / self.config.tokens)
        # Without clipping the norm is still needed: it tells whether all gradients are finite.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.gradient_clip or math.inf)
        losses = self._read(passed, self.workers.whole(norm), trained)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self._count(drawn.documents, trained, tokens)
        point = {"step": self.progress.step, "tokens": self.progress.tokens, **losses, "learning_rate": rate}
        finished = self.progress.tokens >= self.config.tokens
        if finished or before // self.config.curve_every < self.progress.tokens // self.config.curve_every:
            point |= self._measured()
        self._record(point)
        # By the leader's clock, because all workers have to take part in a checkpoint.
        due = time.monotonic() - self.saved_at >= checkpoints.interval(self.context.checkpoint_seconds, self.saving)
        if finished or self.workers.on_each(lambda: due)[0]:
            self._checkpoint()
        bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)
        bar.update(tokens)

    def _read(self, passed: Passed, norm: torch.Tensor, trained: list[Document]) -> dict[str, float]:
        """Return the mean losses of a step, in nats a label, once they and the gradient's norm are known as finite."""
        found, size = read(passed.losses, norm)
        means: dict[str, float] = {"loss": 0.0}
        # Every worker adds up the losses of all, in one order, so that all have the same numbers.
        for turn, everyones in zip(passed.turns, zip(*found, strict=True), strict=True):
            for summed in everyones:
                for name, value in summed.items():
                    means[name] = means.get(name, 0.0) + value / passed.labels
            self._require_finite(means["loss"], "loss", turn.everyones)
        self._require_finite(size, "gradient", trained)
        return means

    def _count(self, drawn: list[Document], trained: list[Document], tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens += tokens
        progress.documents += len(drawn)
        for document in trained:
            progress.labelled += document.labels
            progress.written += document.labels * document.written
        for document in drawn:
            progress.cut += document.cut
            progress.tasks[document.task] = progress.tasks.get(document.task, 0) + 1

    def _record(self, point: JSON) -> None:
        self.progress.history.append(point)
        self.context.log(point)

    def _checkpoint(self) -> None:
        if self.saved_step == self.progress.step:
            return
        started = time.monotonic()
        checkpoints.save(
            self.context.output,
            self.progress,
            self.parameters,
            self.optimizer,
            self.identity,
            self.best,
            self.workers,
        )
        self.saved_at, self.saved_step = time.monotonic(), self.progress.step
        self.saving = self.saved_at - started

    def _measured(self) -> JSON:
        measured = self._fitting(self._score)
        if not math.isfinite(measured["validation_loss"]):
            raise self._diverged(
                f"the validation loss after step {self.progress.step} is {measured['validation_loss']}"
            )
        if self.config.keep == "best":
            self._keep_if_best(measured["validation_loss"])
        return measured

    def _score(self, tokens: int) -> JSON:
        def score() -> JSON:
            with memory.noticed(tokens=tokens):
                return self.workers.asked(partial(self.measure, tokens))

        return self.workers.on_each(score)[0]

    def _keep_if_best(self, loss: float) -> None:
        """Copy the parameters if no earlier point of the curve had a validation loss as low."""
        if self.progress.best is not None and self.progress.best["validation_loss"] <= loss:
            return
        self.progress.best = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "validation_loss": loss,
        }
        for name, value in self.parameters.items():
            self.best[name] = self.workers.whole(value.detach()).to("cpu", copy=True)

    def _summed(self, documents: list[Document]) -> Mapping[str, torch.Tensor]:
        """Return the objective summed over the labels of a micro-batch, with its parts."""
        first, ready = self.ahead or ([], None)
        batch = ready if ready is not None and first == documents else self._collated(documents)
        self.ahead = None
        bfloat16 = self.dtype == "bfloat16"
        with torch.autocast(torch.device(self.context.device).type, dtype=torch.bfloat16, enabled=bfloat16):
            hidden_TE = hidden_states(self.model, batch)
        # Weights that are trained in float32 give hidden states in float32. The head's product is in bfloat16 even so.
        return self.objective(hidden_TE.bfloat16() if bfloat16 else hidden_TE, batch)

    def _collated(self, documents: list[Document]) -> Batch:
        return collate(documents, self.context.device, share=shares_beginnings(self.model))

    def _require_finite(self, value: float, name: str, documents: list[Document]) -> None:
        if not math.isfinite(value):
            # The optimizer has not taken this step, so the checkpoint is that of the last whole one.
            self._checkpoint()
            raise self._diverged(f"the {name} of step {self.progress.step + 1} is {value}", documents)

    def _diverged(self, what: str, documents: Sequence[Document] = ()) -> Diverged:
        return diverged(
            what,
            # With documents the coming step failed; without, the validation loss after the last one did.
            step=self.progress.step + bool(documents),
            tokens=self.progress.tokens,
            rate=self.config.learning_rate,
            documents=documents,
            path=self.stream.path,
            checkpoint=checkpoints.newest(self.context.output),
        )

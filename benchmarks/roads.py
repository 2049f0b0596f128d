"""The two roads from a dense model to a recovered one, as processes walk them: cuts, trainings, and what both measure.

A clock begins when a process has imported its libraries. So the time of a road has its scoring, search, cutting and
training, with the reading and writing of models. It stops while held-out text is measured. The stock way of training is
`benchmarks.training.fine_tune`; ours is the recover stage up to its merge. Both train on the same rows in the same
order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate  # noqa: F401  # the Trainer would import it when its clock runs
import torch
from peft import LoraConfig
from transformers.utils.logging import disable_progress_bar

from benchmarks.training import Step, fine_tune
from pipeline.planning.graph import Node
from stages.adapters.low_rank import LowRankConfig
from stages.common.files import write_json
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.perplexity import texts
from stages.inference.scorer import Scorer
from stages.recover.asking import asking
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.stage import material_of, trained
from stages.rows.packing import take
from stages.rows.tokens import tokenised
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARMUP = 0.05
"""Share of the stock way's steps over which its rate rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and how a process works, alike for both roads.

    Attributes:
        device: torch's name of the device.
        dtype: precision of training and of measuring.
        threads: processor threads; None is torch's own choice.
        cache: the directory of downloads.
    """

    device: str
    dtype: str
    threads: int | None
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out text: an artifact of the tasks stage, the kinds of text in it, and the documents of each kind."""

    artifact: Path
    kinds: tuple[str, ...]
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A recovery of a pruned model.

    Attributes:
        inputs: the artifacts by name: model, data, and teacher where our recipe has one.
        config: our recipe. The stock way takes from it the rows: their order, their length and where the loss is taken.
        tokens: the budget in tokens of rows.
        every: tokens between two measurements. The last is after the last step.
        held_out: the text that is measured.
    """

    inputs: Mapping[str, Path]
    config: RecoverStageConfig
    tokens: int
    every: int
    held_out: HeldOut


@dataclass(frozen=True, slots=True, kw_only=True)
class StockRecipe:
    """The settings of the stock way: LoRA's rank and alpha, and the peak learning rate."""

    rank: int
    alpha: int
    learning_rate: float


class Clock:
    """Seconds since it was made, without those of `stopped`."""

    def __init__(self) -> None:
        self._begun, self._stopped = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self._begun - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out the seconds of the block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._stopped += time.perf_counter() - begun


class Course:
    """The held-out perplexity of a model at points of its training, written to `output` as it comes.

    Attributes:
        points: one of {"tokens", "seconds", "texts"} a measurement.
    """

    def __init__(self, training: Training, machine: Machine, output: Path) -> None:
        self.points: list[JSON] = []
        self._training, self._machine, self._file = training, machine, output / "points.json"
        self._clock, self._due = Clock(), training.every

    def reached(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int, *, last: bool) -> None:
        """Measure `model` if a measurement is due after `tokens` tokens of training, or if these are the last."""
        if tokens < self._due and not last:
            return
        seconds = self._clock.seconds()
        with self._clock.stopped():
            found = _perplexities(model, tokenizer, self._training.held_out, self._machine.dtype)
            self.points.append({"tokens": tokens, "seconds": seconds, "texts": found})
            write_json(self._file, self.points)
        self._due = (tokens // self._training.every + 1) * self._training.every


def run_stages(nodes: Sequence[Node], known: Mapping[str, Path], machine: Machine, output: Path) -> JSON:
    """Run the stages of `nodes`, inputs first, with folders of their own in `output`. For a fresh process.

    `known` has the artifacts that are there, by key. Returns the seconds of each stage, and the new artifacts by key.
    """
    _prepare(machine)
    functions = [node.stage.load() for node in nodes]
    made, seconds = dict(known), {}
    for node, function in zip(nodes, functions, strict=True):
        folder = made[node.key] = output / f"{node.stage.name}-{node.key[:8]}"
        folder.mkdir()
        context = Context(output=folder, device=machine.device, cache=machine.cache, locations=node.locations)
        clock = Clock()
        function(node.config, {name: made[other.key] for name, other in node.inputs.items()}, context)
        seconds[folder.name] = clock.seconds()
    return {"seconds": seconds, "artifacts": {key: str(path) for key, path in made.items() if key not in known}}


def measure_model(artifact: Path, held_out: HeldOut, machine: Machine) -> JSON:
    """Return the held-out perplexities of the model of an artifact. For a fresh process."""
    _prepare(machine)
    model = load_model(artifact / "model", dtype=machine.dtype, device=machine.device)
    return _perplexities(model, load_tokenizer(artifact / "model"), held_out, machine.dtype)


def train_ours(training: Training, machine: Machine, output: Path) -> list[JSON]:
    """Recover by our recipe, and return the points of the course. For a fresh process."""
    _prepare(machine)
    course = Course(training, machine, output)
    material = material_of(training.config, training.inputs, machine.device)
    held: list[PreTrainedModel] = []

    def load(dtype: str) -> PreTrainedModel:
        held.append(material.load(dtype))
        return held[0]

    def log(point: JSON) -> None:
        # Points of the recipe's own curve have no loss unless a step was taken.
        if "loss" in point:
            last = point["tokens"] >= training.tokens
            course.reached(held[0], material.tokenizer, point["tokens"], last=last)

    # No checkpoints: the stock way writes none either.
    cache = output / "cache"
    context = Context(output=output, device=machine.device, checkpoint_seconds=1e9, cache=cache, log=log)
    trained(_quiet(training), replace(material, load=load), context)
    return course.points


def train_stock(training: Training, recipe: StockRecipe, machine: Machine, output: Path) -> list[JSON]:
    """Recover with transformers' Trainer and PEFT's LoRA, and return the points of the course. For a fresh process."""
    _prepare(machine)
    course = Course(training, machine, output)
    source, recover = training.inputs["model"] / "model", training.config.recover
    tokenizer = load_tokenizer(source)
    drawn = tokenised(
        training.inputs["data"] / "train.jsonl",
        tokenizer,
        length=recover.sequence_length,
        label_prompts=recover.loss == "all",
        seed=training.config.seed,
        tokens=training.tokens,
        cache=output / "cache",
    )
    rows = take(drawn.documents(), training.tokens)

    def on_step(step: Step) -> None:
        course.reached(step.model, tokenizer, step.tokens, last=step.last)

    fine_tune(
        load_model(source, dtype=machine.dtype, device=machine.device),
        tokenizer,
        rows,
        lora=LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=LowRankConfig().targets,
        ),
        learning_rate=recipe.learning_rate,
        warmup=WARMUP,
        dtype=machine.dtype,
        on_step=on_step,
    )
    return course.points


def _prepare(machine: Machine) -> None:
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    disable_progress_bar()
    # transformers imports its Trainer when that is first named, which would be while a clock runs.
    from transformers import Trainer  # noqa: F401


def _quiet(training: Training) -> RecoverStageConfig:
    """Return our recipe with the budget, scoring next to no held-out rows of its own, unless it chooses by them."""
    recover = replace(training.config.recover, tokens=training.tokens)
    if recover.keep != "best":
        recover = replace(recover, curve_every=training.tokens, validation_tokens=1, test_tokens=0)
    return replace(training.config, recover=recover)


def _perplexities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, dtype: str
) -> dict[str, Any]:
    """Return {kind of text: {"perplexity", "nll", "tokens", "bits_per_byte"}}."""
    config = EvaluateConfig(texts=list(held_out.kinds), passages=held_out.documents)
    with asking(model, dtype):
        # Not the scorer's fast decoder, which keeps copies of weights: these may change under it.
        scorer = Scorer(model, tokenizer, batch_tokens=RecoverConfig().micro_batch_tokens, flat=False)
        found = texts(scorer, held_out.artifact, config)
    return {
        kind: {name: of_kind[name] for name in ("perplexity", "nll", "tokens", "bits_per_byte")}
        for kind, of_kind in found.items()
    }

"""The units of an evaluation: what is judged in one go, with the same result in any process and in any order.

Which documents share a pass decides the shapes of its matrix products, and a product of another shape may round
differently. So a unit is cut by the task, never by what is already there or by who judges it, and it is judged whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from stages.adapters.loading import Source
from stages.common.choices import lookup
from stages.common.determinism import ordered_sums
from stages.decoders.checkpoint import load_tokenizer
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.continuations import continuations
from stages.evaluate.fitting import explained
from stages.evaluate.judge import PROTOCOLS, Model, Paper
from stages.evaluate.lm import FastLM
from stages.evaluate.perplexity import corpora, texts
from stages.inference.fitting import Advance
from stages.inference.scorer import Scorer
from stages.processes.crew import Crew
from stages.stage import JSON, Context

BLOCK = 100
"""Documents judged together: block k of a task is its documents 100 k to 100 k + 99. A kill costs at most these;
sorting them by length saves work."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is judged in one go: a block of a task, a kind of text, a corpus, or all continuations."""

    kind: str
    """tasks, texts, corpora or continuations."""
    name: str
    """Name of the task, the kind of text or the corpus."""
    paper: int = 0
    """Number of the task's paper that a block is of."""
    first: int = 0
    """Number of a block's first document."""
    missing: int = 0
    """How many of a block's last documents lack a row. The others were judged before a kill."""
    answers: int = 0
    """How many answers a block needs."""


Ask = Callable[[Sequence[Unit], Advance], Iterator[Any]]
"""Yields what `Examination.judge` returns for each unit, in order; is told of more answers as they are done."""


def loader(config: EvaluateConfig, inputs: Mapping[str, Path], device: str, cards: Sequence[str] = ()) -> Model:
    """Return a function that loads the model of artifact `inputs["model"]` once, when it is first called."""

    @cache
    def model() -> FastLM:
        source = Source.of(inputs["model"], inputs.get("base"))
        loaded = source.load(dtype=config.dtype, device=device, cards=cards)
        # The scorer's own decoder does not pass from card to card.
        own, reader = not cards, load_tokenizer(source.model)
        return FastLM(Scorer(loaded, reader, batch_tokens=config.batch_tokens, flat=own))

    return model


class Examination:
    """The papers of every task and the held-out texts of `artifact`, on which `model` is judged unit by unit."""

    def __init__(self, config: EvaluateConfig, artifact: Path, model: Model) -> None:
        self._config, self._artifact, self._model = config, artifact, model
        self._papers: dict[str, list[Paper]] = {}

    def papers(self, name: str) -> list[Paper]:
        """Return the papers of a task, one for each task of a group.

        Raises:
            UserError: the task can't be asked.
        """
        if name not in self._papers:
            papers_of = lookup("protocol", self._config.protocol, PROTOCOLS)
            self._papers[name] = list(papers_of(name, self._artifact, self._config, self._model))
        return self._papers[name]

    def blocks(self, name: str, judged: int) -> Iterator[Unit]:
        """Yield the blocks of a task that are not judged to their end; the first `judged` documents have a row."""
        for place, paper in enumerate(self.papers(name)):
            for first in range(0, len(paper.questions), BLOCK):
                block = paper.questions[first : first + BLOCK]
                if (missing := min(first + len(block) - judged, len(block))) > 0:
                    yield Unit("tasks", name, place, first, missing, paper.size(block))
            judged = max(judged - len(paper.questions), 0)

    def held_out(self) -> list[Unit]:
        """Return the units of perplexity."""
        config = self._config
        kinds = config.texts if config.passages else ()
        return [Unit("texts", name) for name in kinds] + [Unit("corpora", name) for name in config.corpora]

    def judge(self, unit: Unit, advance: Advance = int) -> Any:
        """Return the rows that a block lacks, the figures of a kind of text or a corpus, or rows of continuations.

        Raises:
            UserError: a likelihood is not finite, or there is nothing to ask.
        """
        if unit.kind == "tasks":
            return self._rows(unit, advance)
        if unit.kind == "continuations":
            return continuations(self._config, self._artifact, self._model)
        scorer, name = self._model().scorer, unit.name
        # Of one name alone, whose figures do not depend on the others.
        if unit.kind == "texts":
            return texts(scorer, self._artifact, replace(self._config, texts=[name]))[name]
        return corpora(scorer, self._artifact, replace(self._config, corpora=[name]))[name]

    def _rows(self, unit: Unit, advance: Advance) -> list[JSON]:
        papers = self.papers(unit.name)
        paper = papers[unit.paper]
        rows = paper.judge(paper.questions[unit.first : unit.first + BLOCK], unit.first, advance)[-unit.missing :]
        return [row | {"doc": f"{paper.leaf}/{row['doc']}"} for row in rows] if len(papers) > 1 else rows

    def each(self, units: Sequence[Unit], advance: Advance) -> Iterator[Any]:
        """Yield the result of each unit, judged in this process."""
        return (self.judge(unit, advance) for unit in units)


def together(config: EvaluateConfig, inputs: Mapping[str, Path], context: Context) -> Ask:
    """Return what lets `context.workers` processes judge units, each with a copy of the model on its own device."""

    def ask(units: Sequence[Unit], advance: Advance) -> Iterator[Any]:
        if not units:
            return
        given = config, dict(inputs), context.device, context.deterministic
        with Crew(context.workers, context.device, _begin, *given) as crew:
            for unit, answer in zip(units, crew.answers(units), strict=True):
                advance(unit.answers)
                yield answer

    return ask


def _begin(
    config: EvaluateConfig, inputs: Mapping[str, Path], device: str, deterministic: bool
) -> Callable[[Unit], Any]:
    examination = Examination(config, inputs["tasks"], loader(config, inputs, device))

    def judge(unit: Unit) -> Any:
        with ordered_sums(deterministic), explained():
            return examination.judge(unit)

    return judge

"""Protocols: a model is asked each document of a task, and each answer becomes a row of scores.

A protocol turns a task's name into `Paper`s, one for each task of a group. A paper holds the documents in order, and a
function that judges any run of consecutive documents. Documents of a run are judged together, and the last bits of an
answer depend on which ones these are. The caller must therefore cut the same runs every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json, read_jsonl
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.fitting import scored
from stages.evaluate.generation import finished, judge_generation
from stages.evaluate.lm import FastLM
from stages.inference.beam_search import beam_search
from stages.inference.fitting import Advance
from stages.stage import JSON
from stages.task_library.definitions import Document, documents, leaf_folder, load, metrics

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Model = Callable[[], FastLM]
"""Returns the model, loaded when the first answer is wanted. An evaluation that already has all its rows loads none."""


@dataclass(frozen=True, slots=True)
class Paper:
    """The questions of one task.

    Attributes:
        leaf: the task's name.
        metric: the metric that `acc` of its rows holds.
        questions: its documents, in order.
        judge: given some consecutive questions, the number of the first and `advance`, returns one row for each.
            `advance` is told how many more answers are done.
        size: returns how many answers some questions need.
    """

    leaf: str
    metric: str
    questions: Sequence[Any]
    judge: Callable[[Sequence[Any], int, Advance], list[JSON]]
    size: Callable[[Sequence[Any]], int] = len


def likelihood_papers(name: str, artifact: Path, config: EvaluateConfig, model: Model) -> Iterator[Paper]:
    """Yield the papers of the task or group `name`, asked as lm-eval's definition asks it.

    Raises:
        UserError: the artifact has no rows of the task, or none of its metrics is a mean over documents.
    """
    for leaf, task in load(name, artifact, limit=config.limit).items():
        metric = _main_metric(leaf, metrics(task))
        asked = documents(task, config.num_fewshot, config.limit)
        yield Paper(leaf, metric, asked, partial(judge_by_definition, model, task, metric), _requests)


def generation_papers(name: str, artifact: Path, config: EvaluateConfig, model: Model) -> Iterator[Paper]:
    """Yield the paper of the task `name`, asked by LLM-Adapters' instruction."""
    (leaf, found), *_ = read_json(artifact / "tasks.json")[name]["leaves"].items()
    rows = list(islice(read_jsonl(leaf_folder(artifact, leaf) / f"{found['split']}.jsonl"), config.limit))

    def write(prompts: Sequence[str], done: Advance) -> list[str]:
        new_tokens = config.new_tokens
        if config.beams > 1:
            return beam_search(model().scorer, prompts, beams=config.beams, new_tokens=new_tokens, advance=done)
        return model().generator.generate(prompts, new_tokens=new_tokens, stop=finished(name), advance=done)

    def judge(some: Sequence[JSON], first: int, advance: Advance) -> list[JSON]:
        fits = partial(model().scorer.encoder.fits, room=config.new_tokens)
        written = lambda prompts, done: model().in_parts(write, prompts, done)  # noqa: E731
        return judge_generation(written, name, some, fits=fits, advance=advance, first=first)

    yield Paper(leaf, "acc", rows, judge)


PROTOCOLS: dict[str, Callable[[str, Path, EvaluateConfig, Model], Iterator[Paper]]] = {
    "likelihood": likelihood_papers,
    "generation": generation_papers,
}


def judge_by_definition(
    model: Model, task: ConfigurableTask, metric: str, asked: Sequence[Document], first: int, advance: Advance
) -> list[JSON]:
    """Return one row a document, enough for paired statistics between models.

    Keys: doc (its number), acc (the task's `metric`) and acc_norm as lm-eval scores them (acc_norm is null where the
    task has none), truncated (whether a context was cut to fit the model). Where choices are weighed there are also
    gold, loglikelihoods and lengths (UTF-8 bytes) of the choices, bits (−log2 of the right answer's probability) and
    bytes (the right answer's length); the last two are null where there is no one right answer. Where an answer is
    written there is output.

    Raises:
        UserError: a log-likelihood is not finite.
    """
    requests = [request for document in asked for request in document.requests]
    answers: Sequence[Any]
    if task.OUTPUT_TYPE == "generate_until":
        answers = model().write(requests, advance)
        cut = [not model().scorer.encoder.fits(context, room=0) for context, _ in requests]
    else:
        queries = model().scorer.encoder.queries(requests)
        answers = scored(model().scorer, queries, advance)
        cut = [query.truncated for query in queries]
    answered = iter(zip(answers, cut, strict=True))
    rows = []
    for number, document in enumerate(asked, first):
        own, truncated = zip(*islice(answered, len(document.requests)), strict=True)
        rows.append(_row(task, metric, number, document, list(own)) | {"truncated": any(truncated)})
    return rows


def _row(task: ConfigurableTask, metric: str, number: int, document: Document, answers: list[Any]) -> JSON:
    written = task.OUTPUT_TYPE == "generate_until"
    if not written and not all(isfinite(loglikelihood) for loglikelihood, _ in answers):
        raise UserError(
            f"document {number} of task '{task.config.task}' has a log-likelihood that is not finite. "
            "Check the weights, or evaluate with evaluate.dtype=float32."
        )
    scores = _scores(task, number, document, answers)
    row: JSON = {"doc": number, "acc": float(scores[metric]), "acc_norm": scores.get("acc_norm")}
    if written:
        return row | {"output": answers[0], "bits": None, "bytes": None}
    loglikelihoods = [loglikelihood for loglikelihood, _ in answers[: len(document.lengths)]]
    gold = document.gold
    return row | {
        "gold": gold,
        "loglikelihoods": loglikelihoods,
        "lengths": document.lengths,
        "bits": None if gold is None else -loglikelihoods[gold] / log(2),
        "bytes": None if gold is None else document.lengths[gold],
    }


def _scores(task: ConfigurableTask, number: int, document: Document, answers: list[Any]) -> JSON:
    """Return lm-eval's metrics of one document. lm-eval's filters are applied to the answers; of several, the first."""
    from lm_eval.api.instance import Instance

    about = (task.config.task, number, 1)
    kind = "generate_until" if task.OUTPUT_TYPE == "generate_until" else "loglikelihood"
    instances = [
        Instance(kind, document.doc, request, place, metadata=about, resps=[answer])
        for place, (request, answer) in enumerate(zip(document.requests, answers, strict=True))
    ]
    # lm-eval's filters work on the instances that the task holds.
    task._instances = instances
    task.apply_filters()
    first = next(iter(instances[0].filtered_resps))
    scores: JSON = task.process_results(document.doc, [instance.filtered_resps[first] for instance in instances])
    return scores


def _requests(asked: Sequence[Document]) -> int:
    return sum(len(document.requests) for document in asked)


def _main_metric(leaf: str, means: Sequence[str]) -> str:
    if not means:
        raise UserError(f"no metric of task '{leaf}' is a mean over its documents. Leave it out of evaluate.tasks.")
    return "acc" if "acc" in means else means[0]

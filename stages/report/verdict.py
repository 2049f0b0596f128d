"""The first sentence of a report: is the model as good as the dense one, and if not, how far is it?

It answers over text (the mean of the logarithms over the kinds that nothing was fitted to), over tasks, and over what
the model writes by itself (the share of repeated 4-grams in greedy continuations), which has a clause only where it
differs. A difference counts where its 95 % interval is outside zero. A recovery that clearly made something worse is
named in the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stages.report.wording import LARGEST, bare, bits, listing, percent, perplexity, points
from stages.stage import JSON


@dataclass(frozen=True, slots=True)
class Finding:
    """What one measure says of the model beside the dense one.

    Attributes:
        side: 1 where the model is clearly better, −1 where it is clearly worse, 0 where neither is clear.
        clause: the finding in words.
        harm: how the recovery made this measure clearly worse, in words; "" where it did not.
    """

    side: int
    clause: str
    harm: str = ""


def verdict(report: JSON) -> str:
    """Return the sentence, or "" where there is nothing to say.

    `report` needs the perplexities ("texts"), the scores ("tasks", "mean"), the continuations ("generation"),
    "trained_tasks" and what was done to the model ("prune").
    """
    judged = _judged(report)
    last = "recovered" if "recovered" in judged else "pruned"
    if last not in judged:
        return ""
    if report["prune"] == "none" and last == "pruned":
        return "This is the dense model itself: nothing was pruned and nothing recovered."
    if "dense" not in judged:
        return f"How far the {last} model is from the dense one is not known: no dense model was judged."
    found = [*_of_text(report, last), *_of_tasks(report, last), *_of_continuations(report, last)]
    if not found:
        return ""
    clauses = "; ".join([*(finding.clause for finding in found), *(finding.harm for finding in found if finding.harm)])
    return f"{_answer([finding.side for finding in found], last)}: {clauses}."


def text_measure(report: JSON) -> tuple[JSON, str] | None:
    """Return the figures of text that the sentences rest on, and in words the text that they are of.

    These are the mean's. Without it they are Wikipedia's, with what read text of that kind.
    """
    texts = report["texts"]
    if not texts:
        return None
    if texts["mean"]:
        over = texts["mean"]["over"]
        several = f"{len(over)} kinds of text" if len(over) > 1 else f"text of one kind ({label(texts, over[0])})"
        return texts["mean"], f"{several} that nothing was fitted to"
    kind = "wikipedia" if "wikipedia" in texts["kinds"] else next(iter(texts["kinds"]))
    found = texts["kinds"][kind]
    read = f", whose like {listing([f'the {by}' for by in found['read_by']])} read" if found["read_by"] else ""
    return found, f"text of one kind ({label(texts, kind)}{read})"


def label(texts: JSON, kind: str) -> str:
    """Return a kind's name in sentences."""
    return texts["kinds"][kind]["label"] or kind


def _judged(report: JSON) -> set[str]:
    """Return the models that have a score on text or on tasks, or that were asked to write."""
    text = text_measure(report)
    judged = {*(text[0] if text else ()), *(report["mean"] or ()), *(report["generation"] or ())}
    return judged & {"dense", "pruned", "recovered"}


def _answer(sides: list[int], last: str) -> str:
    if -1 in sides and 1 in sides:
        worse = "one respect" if sides.count(-1) == 1 else "two respects"
        better = "another" if sides.count(1) == 1 else "two others"
        return f"The {last} model is worse than the dense one in {worse} and better in {better}"
    if -1 in sides:
        return f"The {last} model is not as good as the dense one"
    if 1 in sides:
        return f"The {last} model is at least as good as the dense one"
    return f"No difference between the {last} and the dense model is clear at 95 %".replace(" %", "\u00a0%")


def _of_text(report: JSON, last: str) -> Iterator[Finding]:
    measured = text_measure(report)
    if measured is None:
        return
    figures, text = measured
    effect = figures["log"][f"{last}_minus_dense"]
    side = -_sign(effect)
    harm = figures["log"].get("recovered_minus_pruned")
    if figures["per"] == "byte":
        values = figures["bits_per_byte"]
        unclear = "" if side else ", which is within noise"
        clause = (
            f"on {text} it needs {bits(values[last])} bits a byte, the dense model {bits(values['dense'])}{unclear}"
        )
        before = f"the recovery made that worse: the pruned model needs {bits(values.get('pruned'))}"
    else:
        low, high = (_ratio(end) for end in effect["interval"])
        interval = f"(95\u00a0% interval {low} to {high})"
        unclear = "" if side else ", which is within noise"
        clause = f"its perplexity on {text} is {_ratio(effect['value'])} times the dense model's {interval}{unclear}"
        pruned = figures["log"].get("pruned_minus_dense", {}).get("value")
        before = f"the recovery made the perplexity worse, which before it was {_ratio(pruned)} times the dense model's"
    yield Finding(side, clause, before if harm and _sign(harm) > 0 else "")


def _of_tasks(report: JSON, last: str) -> Iterator[Finding]:
    average, tasks = report["mean"], report["tasks"]
    if not average:
        return
    effect = average["accuracy"][f"{last}_minus_dense"]
    own, dense = (percent(average[model]["acc"]) for model in (last, "dense"))
    named = f"on {len(tasks)} tasks" if len(tasks) > 1 else f"on {next(iter(tasks.values()))['label']}"
    score = "accuracy" if average["metric"] == "acc" else "score"
    name = f"its mean {score} {named}" if len(tasks) > 1 else f"its {score} {named}"
    side = _sign(effect)
    fitted = ", after training on the tasks' own train splits" if report["trained_tasks"] and side >= 0 else ""
    if side:
        way = "higher" if side > 0 else "lower"
        apart = bare(points(abs(effect["value"])))
        clause = f"{name} is {apart} points {way} ({own} against {dense}{fitted})"
    else:
        clause = f"{name} is {own} against {dense}, which is within noise{fitted}"
    harm = average["accuracy"].get("recovered_minus_pruned")
    before = f"the recovery lowered the {score}, which before it was {percent(average.get('pruned', {}).get('acc'))}"
    yield Finding(side, clause, before if harm and last == "recovered" and _sign(harm) < 0 else "")


def _of_continuations(report: JSON, last: str) -> Iterator[Finding]:
    """Yield the finding on repetition where it is clear: a model may repeat itself whose likelihoods show nothing."""
    found = report["generation"]
    effect = found["repeated"].get(f"{last}_minus_dense") if found else None
    if not effect or not _sign(effect):
        return
    own, dense = (percent(found[model]["repeated"], digits=0) for model in (last, "dense"))
    apart = bare(percent(abs(effect["value"]), digits=0))
    way = "more" if effect["value"] > 0 else "fewer"
    clause = f"its greedy text repeats {apart} points {way} of its 4-grams ({own} against {dense})"
    harm = found["repeated"].get("recovered_minus_pruned")
    pruned = percent(found.get("pruned", {}).get("repeated"), digits=0)
    before = f"the recovery raised that repetition, which before it was {pruned}"
    yield Finding(-_sign(effect), clause, before if harm and _sign(harm) > 0 else "")


def _ratio(nats: float | None) -> str:
    """Return how many times as high a perplexity is, from the difference of the logarithms."""
    return perplexity(None if nats is None else math.exp(min(nats, LARGEST)))


def _sign(effect: JSON) -> int:
    """Return the sign of a difference that is clear, else 0."""
    return 0 if not effect["clear"] else 1 if effect["value"] > 0 else -1

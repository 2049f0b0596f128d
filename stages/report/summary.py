"""The sentences that open a report. They claim only what lies outside its 95 % interval.

The first says whether the model is as good as the dense one (`stages.report.verdict`). Clear findings follow, as a rule
in the low-variance measures: perplexity, then bits per byte. One closing sentence names what is within noise. Where the
recovery trained on the judged tasks' own train splits, a better score on them is not called recovery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.verdict import verdict
from stages.report.wording import MODELS, NAMES, bare, bits, listing, millions, percent, perplexity
from stages.stage import JSON

REFERENCES = {
    "dense": "the dense model, as it is",
    "dense_recovered": "the dense model after the same recovery",
    "none": "nothing: no dense model was evaluated",
}
"""The model that each `reference` compares with, in words."""

QUESTIONS = {
    "dense": "The reference is the dense model as it is, without further training. So these shares answer: how much of "
    "its score is back?",
    "dense_recovered": "The reference is the dense model after the same recovery: the same data, adapter and number of "
    "tokens. So these shares answer: how much of what this training gives an unpruned model does the pruned one reach?",
}
"""The question that the shares of the loss answer, for each reference."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A score of the models that were judged, with its effects and how it is written.

    Attributes:
        name: the measure's name within a sentence.
        values: {model: score}.
        effects: as `stages.report.effects.effects` returns them.
        write: writes a score as text.
        fitted: whether the recovery trained on this measure's train splits.
        scale: the scale on which its shares are taken, where that is not the score itself.
    """

    name: str
    values: Mapping[str, float]
    effects: Mapping[str, Any]
    write: Callable[[float | None], str]
    fitted: bool
    scale: str = ""


def measures(report: JSON) -> list[Measure]:
    """Return the measures over everything judged, those of low variance first."""
    found = []
    average, fitted = report["mean"], bool(report["trained_tasks"])
    for figures, text in _texts(report["texts"]) if report["texts"] else ():
        if figures["per"] == "token":
            values = {model: figures[model] for model in MODELS if model in figures}
            scale = "in log perplexity"
            found.append(
                Measure(f"perplexity of {text}", values, figures["log"], perplexity, fitted=False, scale=scale)
            )
        else:
            values = figures["bits_per_byte"]
            found.append(Measure(f"bits per byte of {text}", values, figures["log"], bits, fitted=False))
    if average:
        models = [model for model in MODELS if model in average]
        density = {model: average[model]["bits_per_byte"] for model in models}
        accuracy = {model: average[model]["acc"] for model in models}
        if None not in density.values():
            name = "mean bits per byte of the right answers"
            found.append(Measure(name, density, average["bits_per_byte"], bits, fitted))
        found.append(Measure(accuracy_name(report), accuracy, average["accuracy"], percent, fitted))
    return found


def _texts(texts: JSON) -> Iterator[tuple[JSON, str]]:
    """Yield the figures of held-out text that have a sentence: the mean over kinds, and Wikipedia's passages."""
    if texts["mean"]:
        yield texts["mean"], "held-out text"
    if "wikipedia" in texts["kinds"]:
        yield texts["kinds"]["wikipedia"], "Wikipedia passages"


def accuracy_name(report: JSON) -> str:
    """Return the accuracy's name, with what sets it apart: "mean 5-shot accuracy of generated answers"."""
    shots, generated = report["protocol"]["num_fewshot"], report["protocol"]["name"] == "generation"
    words = [
        "mean" if len(report["tasks"]) > 1 else "",
        f"{shots}-shot" if shots else "",
        "accuracy" if report["mean"]["metric"] == "acc" else "score",
        "of generated answers" if generated else "",
    ]
    return " ".join(filter(None, words))


def summary(report: JSON) -> str:
    """Return the opening sentences of a report, one a line."""
    found = measures(report)
    learned, harmed = _held_out_loss(report)
    clear, noise = [], []
    for measure in found:
        sentence, doubtful = _sentence(measure)
        clear += [sentence] if sentence else []
        noise += doubtful
    closing = [f"Within noise: {listing(noise)}."] if noise else []
    if noise and not clear:
        closing = [f"No difference is clear at 95 %: {listing(noise)}. More documents would narrow them."]
    if not found:
        unscored = "No task was judged and no perplexity measured." if report.get("generation") else ""
        closing = [*learned, unscored or "Nothing was evaluated, so nothing is said about quality."]
    first = verdict(report)
    opening = [*([first] if first else []), *_opening(report["params"])]
    return "\n".join([*opening, *clear, *closing, *harmed])


def caution(report: JSON) -> str | None:
    """Return the warning that a report must carry where judged tasks' train splits were trained on, or None."""
    fitted = [report["tasks"][name]["label"] for name in report["trained_tasks"] if name in report["tasks"]]
    if not fitted or report["adapter"] == "none":
        return None
    held_out = " Held-out text is in no training data set of the package index." if report["texts"] else ""
    trained = f"The recovery trained on the train splits of judged tasks ({listing(fitted)})"
    if report["reference"] == "dense_recovered":
        return (
            f"{trained}, which lifts scores by itself. The reference had the same training, so the retained share "
            "compares two models that were trained alike. The recovered share still counts the fitting to the tasks, "
            f"both in what came back and in what there was to reach.{held_out}"
        )
    return (
        f"{trained}. Their scores mix recovery of what pruning lost with fitting to the tasks, which lifts scores by "
        f"itself; the reference ({REFERENCES.get(report['reference'], report['reference'])}) had no such training."
        f"{held_out}"
    )


def main_figures(report: JSON) -> JSON:
    """Return the figures for a manifest, a table of runs or a tracker. A figure that was not measured is None."""
    average, texts = report["mean"] or {}, report["texts"] or {"kinds": {}, "mean": None}
    passages, over_kinds = texts["kinds"].get("wikipedia") or {}, texts["mean"] or {}
    figures: JSON = {}
    # Only a run that quantises has figures of a quantised model.
    for model in MODELS if report.get("quantisation") else MODELS[:-1]:
        figures[f"accuracy/{model}"] = average.get(model, {}).get("acc")
        figures[f"bits_per_byte/{model}"] = average.get(model, {}).get("bits_per_byte")
        figures[f"perplexity/{model}"] = passages.get(model)
        figures[f"perplexity/mean/{model}"] = over_kinds.get(model)
        for kind, found in texts["kinds"].items():
            figures[f"perplexity/{kind}/{model}"] = found.get(model)
        figures[f"parameters/{model}"] = report["params"].get(model)
        written = (report.get("generation") or {}).get(model, {})  # an earlier version's report has none
        figures[f"repeated/{model}"], figures[f"agreement/{model}"] = written.get("repeated"), written.get("agreement")
        for corpus in report["corpora"]:
            figures[f"perplexity/{corpus['corpus']}@{corpus['length']}/{model}"] = corpus.get(model)
    figures["retained"] = report["recovery"]["retained"]
    figures["recovered"] = report["recovery"]["recovered"]
    figures["recovered/bits_per_byte"] = _value(average.get("bits_per_byte"), "recovered")
    figures["recovered/perplexity"] = _value(passages.get("log"), "recovered")
    figures["recovered/perplexity/mean"] = _value(over_kinds.get("log"), "recovered")
    return figures


def _held_out_loss(report: JSON) -> tuple[list[str], list[str]]:
    """Return how the recovery changed the loss on its held-out rows: as a fact, or as a warning where it rose."""
    loss = report["training"].get("validation")
    if not loss:
        return [], []
    before, after = bits(loss["initial_loss"]), bits(loss["final_loss"])
    if loss["final_loss"] <= loss["initial_loss"]:
        return [f"Recovery took the loss on its own held-out rows from {before} to {after} nats a token."], []
    return [], [
        f"The recovery made the model worse: the loss on its own held-out rows rose from {before} to {after} nats a "
        "token. Lower recover.learning_rate, or set recover.keep=best."
    ]


def _opening(params: JSON) -> list[str]:
    if masked := params.get("masked"):
        return [_masked(masked, params["pruned"])]
    achieved = params.get("ratio_achieved")
    if achieved is None or not params.get("dense") or not achieved:
        return []
    before, after = millions(params["dense"]), millions(params["pruned"])
    return [f"Pruning removed {percent(achieved)} of the parameters ({before} to {after})."]


def _masked(masked: JSON, parameters: int) -> str:
    share, left = percent(masked["achieved"]), millions(masked["nonzeros"]["pruned"])
    return (
        f"Masking set {share} of {millions(masked['weights'])} weights to zero: all {millions(parameters)} parameters "
        f"stay, {left} of them not zero. A dense kernel multiplies by zeros too, so nothing here is faster for it."
    )


def _sentence(measure: Measure) -> tuple[str, list[str]]:
    """Return what is clear about the measure as one sentence (or ""), and the effects that are within noise."""
    clauses: list[str] = []
    noise: list[str] = []
    reference = _reference(measure)
    gap = f"the gap to the recovered dense model in {measure.name}" if reference == "dense_recovered" else ""
    for key, clause, doubt in (
        ("pruned_minus_dense", _lost, f"the effect of pruning on {measure.name}"),
        ("recovered_minus_pruned", _gained, f"the effect of recovery on {measure.name}"),
        (f"recovered_minus_{reference}", _missing, gap),
    ):
        effect = measure.effects.get(key)
        if effect and effect["clear"]:
            clauses += filter(None, [clause(measure, effect, first=not clauses)])
        elif effect and doubt:
            noise.append(doubt)
    return (f"{'; '.join(clauses)}." if clauses else ""), noise


def _lost(measure: Measure, effect: JSON, *, first: bool) -> str:
    return f"Pruning {_moved(effect)} {measure.name} from {_at(measure, 'dense')} to {_at(measure, 'pruned')}"


def _gained(measure: Measure, effect: JSON, *, first: bool) -> str:
    actor = "training" if measure.fitted else "recovery"
    what = f"{measure.name} from {_at(measure, 'pruned')}" if first else "it"
    actor = actor.capitalize() if first else actor
    return f"{actor} {_moved(effect)} {what} to {_at(measure, 'recovered')}{_share(measure)}"


def _missing(measure: Measure, effect: JSON, *, first: bool) -> str:
    """Say whether the recovered model is above or below the reference, unless the other clauses have said so."""
    reference = _reference(measure)
    told = bool(_share(measure)) and measure.effects["recovered_minus_pruned"]["clear"]
    if told or measure.values[reference] == measure.values.get("pruned"):
        return ""
    where = f"In {measure.name} the" if first else "the"
    side = "above" if effect["value"] > 0 else "below"
    other = f"the {NAMES.get(reference, reference)} one, at {_at(measure, reference)}"
    return f"{where} recovered model, at {_at(measure, 'recovered')}, is {side} {other}"


def _share(measure: Measure) -> str:
    """Return the share of the loss that came back, where there is such a number."""
    share = measure.effects.get("recovered")
    if not share or share["value"] is None or share["value"] < 0:
        return ""
    low, high = (bare(percent(end, digits=0)) for end in share["interval"])
    remarks = [
        measure.scale,
        "recovery and task fitting mixed" if measure.fitted else "",
        f"95 % interval {low} to {high}",
    ]
    whole = "of the loss"
    if _reference(measure) == "dense_recovered":
        whole = f"of the way to the recovered dense model's {_at(measure, 'dense_recovered')}"
    return f", {percent(share['value'], digits=0)} {whole} ({'; '.join(filter(None, remarks))})"


def _reference(measure: Measure) -> str:
    return "dense_recovered" if "dense_recovered" in measure.values else "dense"


def _moved(change: Mapping[str, Any]) -> str:
    return "raised" if change["value"] > 0 else "lowered"


def _at(measure: Measure, model: str) -> str:
    return measure.write(measure.values[model])


def _value(effects: JSON | None, name: str) -> float | None:
    value: float | None = (effects or {}).get(name, {}).get("value")
    return value

"""The report stage: one account of a recovery from its evaluations, cost and training, as JSON, Markdown and HTML.

Each input may be missing: the evaluations "dense", "dense_recovered", "pruned", "recovered" and "quantised"; "cost";
"prune"; "recover"; "quantise" or "gguf". The report says what is missing. Nothing that depends on the run (times, cache
hits) is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.common.files import read_json, read_jsonl, write_text
from stages.common.questions import questions_behind
from stages.errors import UserError
from stages.report.blocks import markdown
from stages.report.config import ReportConfig
from stages.report.content import results
from stages.report.figures import curve_svg, tasks_svg
from stages.report.generation import generation
from stages.report.inputs import protocol
from stages.report.perplexity import corpora, texts
from stages.report.quantised import quantised_notes
from stages.report.render import SCHEMA, files
from stages.report.scores import task_scores
from stages.report.summary import accuracy_name, caution, main_figures, summary
from stages.report.wording import MODELS
from stages.stage import JSON, Context


def run(config: ReportConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write report.json, .md and .html, the pictures, and results.md for a model's card. Return the main figures."""
    report = build(config, inputs)
    curve = curve_svg(report["curve"], questions_behind(report["training"]))
    drawn = {"curve": curve, "tasks": tasks_svg(report["tasks"], report["mean"])}
    for name, text in files(report, {name: svg for name, svg in drawn.items() if svg}).items():
        write_text(context.output / name, text)
    write_text(context.output / "results.md", markdown(results(report)))
    return main_figures(report)


def build(config: ReportConfig, inputs: Mapping[str, Path]) -> JSON:
    """Return the contents of report.json."""
    if config.resamples < 100:
        raise UserError(f"resamples={config.resamples} is too few for a 95 % interval: give at least 100.")
    evaluations = {model: inputs[model] for model in MODELS if model in inputs}
    judged = protocol(evaluations)
    tasks, average = task_scores(evaluations, resamples=config.resamples, seed=config.seed)
    report: JSON = {
        "schema": SCHEMA,
        "model": config.model,
        "prune": config.prune,
        "adapter": config.adapter,
        "data": config.data,
        "reference": config.reference,
        "params": _params(config, inputs),
        "protocol": judged,
        "tasks": tasks,
        "mean": average,
        "texts": texts(evaluations, config.resembles, resamples=config.resamples, seed=config.seed),
        "corpora": corpora(evaluations, resamples=config.resamples, seed=config.seed),
        "generation": generation(evaluations, resamples=config.resamples, seed=config.seed),
        "cost": read_json(inputs["cost"] / "cost.json") if "cost" in inputs else {},
        "curve": list(read_jsonl(inputs["recover"] / "history.jsonl")) if "recover" in inputs else [],
        "training": read_json(inputs["recover"] / "recovery.json") if "recover" in inputs else {},
        "trained_tasks": [name for name in config.trained_tasks if name in tasks],
        "configuration": config.configuration,
    }
    if (record := _quantisation(inputs)) is not None:
        report["quantisation"] = record
    # Wikipedia's passages under the name that a report's readers have known them by.
    report["perplexity"] = ((report["texts"] or {}).get("kinds") or {}).get("wikipedia")
    report["recovery"] = _recovery(report)
    report["summary"] = summary(report)
    report["caution"] = caution(report)
    report["notes"] = _notes(config, evaluations) + _apart(report["training"])
    report["notes"] += quantised_notes(report.get("quantisation"))
    return report


def _params(config: ReportConfig, inputs: Mapping[str, Path]) -> JSON:
    """Return parameter counts as measured (cost) or, without a measurement, as pruned; and what is masked."""
    counts = dict.fromkeys(("dense", "pruned", "recovered"))
    record = read_json(inputs["prune"] / "model" / "pruning.json") if "prune" in inputs else {}
    counts |= record.get("parameters", {})
    masks = {"masked": record["sparsity"] | {"nonzeros": record["nonzeros"]}} if record.get("masks") else {}
    if "cost" in inputs:
        measured = read_json(inputs["cost"] / "cost.json")["models"]
        counts |= {model: entry["parameters"] for model, entry in measured.items()}
    dense, pruned = counts["dense"], counts["pruned"]
    return {
        **counts,
        "ratio_requested": None if config.prune in ("none", "sheared") else config.ratio,
        "channel_ratio": config.channel_ratio,
        "ratio_achieved": 1 - pruned / dense if dense and pruned else None,
        **masks,
    }


def _recovery(report: JSON) -> JSON:
    """Return how much of the mean accuracy came back. Where there is no number, `reason` says why."""
    effects = (report["mean"] or {}).get("accuracy", {})
    kept, share = effects.get("retained", {}), effects.get("recovered", {})
    missing = "not all of the reference, the pruned and the recovered model were evaluated"
    return {
        "measure": accuracy_name(report) if report["mean"] else None,
        "reference": report["reference"],
        "retained": kept.get("value"),
        "retained_interval": kept.get("interval"),
        "recovered": share.get("value"),
        "interval": share.get("interval"),
        "reason": share.get("reason") if share else missing,
    }


def _quantisation(inputs: Mapping[str, Path]) -> JSON | None:
    """Return how the last model was put in few bits; None where it was not, or was not judged."""
    if "quantised" not in inputs:
        return None
    if "quantise" in inputs:
        return dict(read_json(inputs["quantise"] / "quantisation.json"))
    file = read_json(inputs["gguf"] / "conversion.json")
    return {"scheme": file["dtype"], "method": "gguf", "bytes": {"after": file["bytes"]}, "remarks": file["remarks"]}


def _apart(training: JSON) -> list[str]:
    """Return a note that the adapter was not merged, where it can't be."""
    adapter = training.get("adapter", {})
    if "unmergeable" not in adapter:
        return []
    return [
        f"The adapter `{adapter['name']}` can't be merged: {adapter['unmergeable']}. The recovered model is the pruned "
        "model with the recovery's adapter/ attached, and size and cost are those of both together."
    ]


def _notes(config: ReportConfig, evaluations: Mapping[str, Path]) -> list[str]:
    """Return notes on what is missing from this report, and why."""
    notes = []
    if not evaluations:
        notes.append("No model was evaluated (evaluate=none).")
    elif "dense" not in evaluations:
        notes.append("No dense model was evaluated (reference=none), so neither loss nor recovered share can be given.")
    if config.adapter == "none":
        notes.append("Nothing was recovered (adapter=none).")
    if config.prune == "sheared":
        notes.append("The model came pruned: nothing was cut here.")
    if config.prune == "none":
        notes.append("Nothing was pruned (prune=none): dense and pruned are the same model.")
    return notes

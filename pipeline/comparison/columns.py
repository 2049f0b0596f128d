"""The columns of the comparison's table, and which of them set the runs apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparison.run import Run
from pipeline.comparison.runs import adapter_of, grouped, without_seeds
from pipeline.comparison.scores import SCORES, TOO_FEW, Score, best_of
from pipeline.planning.keys import flatten
from stages.report import wording as w
from stages.report.blocks import Cell
from stages.report.sections.cells import share, valued
from stages.report.statistics import MINIMUM_UNITS
from stages.stage import JSON

Value = str | float | None
BEST, NOISE = "best", "≈ best"
"""Remarks of a score: that it is the best, and that it is within noise of the best."""
MOST = 8
"""Options that get a column of their own because they set runs apart; a run's own report has them all."""
OWN_COLUMN = ("adapter.name", "adapter.rank", "recover.learning_rate", "recover.objective", "recover.loss")
LABELS = {"all": "all tokens", "response": "the response"}
"""What the values of `recover.loss` say has a loss."""
SIZES = ("ratio", "megabytes", "channel_ratio", "layer_ratios", "layers", "method", "steps")
"""Options that another column tells of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table.

    Attributes:
        name: its head.
        value: what it is sorted by and what CSV and JSON have.
        cell: what it shows.
        words: whether it shows words and not numbers.
        setting: whether it is a choice of the run's and no result.
        score: the score that it shows, for a column of scores.
    """

    name: str
    value: Callable[[Run], Value]
    cell: Callable[[Run], Cell]
    words: bool = False
    setting: bool = False
    score: Score | None = None


def columns(groups: Sequence[Sequence[Run]]) -> list[Column]:
    """Return the columns of the table: choices that set the runs apart, results, costs, then what is alike in all."""
    every = [run for group in groups for run in group]
    settings = [*SETTINGS, *_more_settings(every)]
    results = [*(_score(score, groups) for score in SCORES), *SHARES, *COSTS]
    shown = [column for column in (*settings, *results) if any(column.value(run) is not None for run in every)]
    apart = [column for column in shown if column.setting and not alike(column, every)]
    rest = [column for column in shown if not column.setting]
    return [*apart, *rest, *(column for column in shown if column.setting and column not in apart), KEY]


def alike(column: Column, every: Sequence[Run]) -> bool:
    """Return whether a choice is the same in all of several runs. Results are never folded away."""
    return column.setting and len(every) > 1 and len({column.value(run) for run in every}) == 1


def _setting(name: str, value: Callable[[JSON], Value], write: Callable[[Any], str] = str, *, words: bool) -> Column:
    def cell(run: Run) -> Cell:
        found = value(run.report)
        return w.DASH if found is None else write(found)

    return Column(name=name, value=lambda run: value(run.report), cell=cell, words=words, setting=True)


def _option(*path: str) -> Callable[[JSON], Any]:
    def read(report: JSON) -> Any:
        found: Any = report["configuration"].get("recover", {})
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return read


def _tokens(report: JSON) -> float | None:
    return float(report["curve"][-1]["tokens"]) if report["curve"] else None


def _rate(report: JSON) -> float | None:
    """Return the peak learning rate: the one that tuning chose, else the configured one."""
    tuning = report["training"].get("tuning") or {}
    found = tuning.get("chosen") or _option("recover", "learning_rate")(report)
    return None if found is None else float(found)


SETTINGS = (
    _setting("model", lambda report: report["model"], words=True),
    _setting("pruned by", lambda report: report["prune"], words=True),
    _setting("removed", lambda report: report["params"]["ratio_achieved"], w.percent, words=False),
    _setting("adapter", adapter_of, words=True),
    _setting("data", lambda report: report["data"], words=True),
    _setting("rate", _rate, lambda rate: f"{rate:g}", words=False),
    _setting("objective", _option("recover", "objective"), lambda name: name.replace("_", " "), words=True),
    _setting("loss", _option("recover", "loss"), lambda name: LABELS.get(name, name), words=True),
    _setting("tokens", _tokens, w.count, words=False),
    _setting("seed", _option("seed"), str, words=False),
    _setting("reference", lambda report: w.NAMES.get(report["reference"], report["reference"]), words=True),
)


def _more_settings(every: Sequence[Run]) -> list[Column]:
    """Return a column for each other option of pruning and recovery in which the runs differ, the first `MOST`."""
    told = [_options(run) for run in every]
    names = sorted({name for options in told for name in options})
    # A run that lacks an option, because it was not recovered, does not differ in it.
    differ = [n for n in names if len({json.dumps(options[n]) for options in told if n in options}) > 1]
    return [_more(name) for name in differ[:MOST]]


def _options(run: Run) -> dict[str, Any]:
    configuration = without_seeds(run.report["configuration"])
    pruning = {k: v for k, v in flatten({"prune": configuration.get("prune", {})}).items() if "." in k}
    recovery = {k: v for k, v in flatten(configuration.get("recover", {})).items() if k and k not in OWN_COLUMN}
    return recovery | {k: v for k, v in pruning.items() if k.removeprefix("prune.") not in SIZES}


def _more(name: str) -> Column:
    def value(run: Run) -> Value:
        found = _options(run).get(name)
        plain = found is None or (isinstance(found, str | int | float) and not isinstance(found, bool))
        return found if plain else json.dumps(found)

    def cell(run: Run) -> Cell:
        found = value(run)
        return w.DASH if found is None else f"{found:g}" if isinstance(found, float) else str(found)

    return Column(name=name, value=value, cell=cell, words=True, setting=True)


def _score(score: Score, groups: Sequence[Sequence[Run]]) -> Column:
    """Return the column of a score. A remark says where a run is within noise of the best one of its group."""
    judged = [own for group in groups for own in grouped(group, lambda run: score.judged(run.report))]
    best = {run.number: found for own in judged if (found := best_of(score, own)) for run in own}

    def value(run: Run) -> Value:
        found = score.last(run)
        return found.value if found else None

    def cell(run: Run) -> Cell:
        found = score.last(run)
        if not found:
            return w.DASH
        interval = list(found.interval) if found.interval else None
        return valued(found.value, interval, score.write, remark(score, run, best.get(run.number)))

    return Column(name=score.name, value=value, cell=cell, score=score)


def remark(score: Score, run: Run, best: Run | None) -> str:
    """Return how a run's score stands to the best one's: the best, within noise of it, too few documents, or ""."""
    found = score.last(run)
    if not found or best is None:
        return ""
    if found.documents < MINIMUM_UNITS:
        return TOO_FEW
    return BEST if run is best else "" if score.apart(best, run) else NOISE


def _share(name: str, measure: str, effect: str) -> Column:
    def found(run: Run) -> JSON | None:
        report = run.report
        texts = ((report["texts"] or {}).get("mean") or {}).get("log")
        return ({"texts": texts, **(report["mean"] or {})}.get(measure) or {}).get(effect)

    def value(run: Run) -> Value:
        return (found(run) or {}).get("value")

    def cell(run: Run) -> Cell:
        effect_ = found(run)
        few = effect_ and str(effect_.get("reason") or "").startswith("fewer than")
        return (w.DASH, TOO_FEW) if few else share(effect_)

    return Column(name=name, value=value, cell=cell)


SHARES = (
    _share("recovered: perplexity", "texts", "recovered"),
    _share("recovered: bits per byte", "bits_per_byte", "recovered"),
    _share("recovered: accuracy", "accuracy", "recovered"),
    _share("retained: accuracy", "accuracy", "retained"),
)
"""Shares of the reference, with the report's own intervals."""


def _cost(name: str, value: Callable[[Run], float | None], write: w.Write) -> Column:
    return Column(name=name, value=value, cell=lambda run: write(value(run)))


def test_perplexity(run: Run) -> float | None:
    """Return the perplexity of the recovery's own test rows, by which no rate was chosen."""
    found: float | None = (run.report["training"].get("test") or {}).get("perplexity")
    return found


def measured(run: Run, model: str = "") -> JSON:
    """Return what was measured of a model's cost; of the last model unless one is named."""
    models = (run.report["cost"] or {}).get("models", {})
    return dict(models.get(model or run.last) or {})


def latency(run: Run, model: str = "") -> JSON:
    """Return the latency at the smallest batch."""
    found = measured(run, model).get("latency") or [{}]
    return dict(min(found, key=lambda entry: entry.get("batch", 0)))


def parameters(run: Run) -> float | None:
    """Return the last model's number of parameters."""
    params = run.report["params"]
    found = params.get(run.last) or params["pruned"]
    return None if found is None else float(found)


COSTS = (
    _cost("test perplexity", test_perplexity, w.perplexity),
    _cost("parameters", parameters, w.millions),
    Column(
        name="time over dense",
        value=lambda run: latency(run).get("decode_ratio"),
        cell=lambda run: valued(latency(run).get("decode_ratio"), latency(run).get("decode_ratio_range"), w.times),
    ),
    _cost("time a token", lambda run: latency(run).get("decode_seconds"), w.milliseconds),
    _cost("peak memory", lambda run: measured(run).get("peak_memory_bytes"), w.megabytes),
    _cost("recovery took", lambda run: run.seconds, w.seconds),
)

KEY = Column(name="key", value=lambda run: run.key or run.name, cell=lambda run: (run.key or run.name)[:12], words=True)

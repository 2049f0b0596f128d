"""The last line of a run on the terminal: what `prune=best` gave in its place, or how to get it. No artifact has it."""

from __future__ import annotations

import dataclasses
import shlex

from omegaconf import OmegaConf

from pipeline.engine.store import Store
from pipeline.planning.build import build_graph
from pipeline.schema.config import Config
from pipeline.schema.written import written
from stages.common.files import read_json
from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.report import wording as w
from stages.report.summary import main_figures
from stages.stage import JSON

BEST = "best"
CARRIED = ("ratio", "budget", "megabytes")
"""Options of pruning that say how much goes: `prune=best` is held to the same."""


def closing(config: Config, store: Store, report: JSON, command: str) -> str:
    """Return the line that ends a run of `config`; empty where there is nothing to compare with.

    A run is compared where a criterion other than that of `prune=best` met a budget, and where held-out text was
    judged. The other run has the same model, budget, data, recovery and evaluation.

    Args:
        config: the configuration that was run.
        store: the store, which may hold the other run's report.
        report: the run's report.
        command: the run's command line.
    """
    best = _best(config.prune)
    fixed = config.prune.channel_ratio is not None or config.prune.layer_ratios is not None
    if fixed or config.prune.method not in CRITERIA or config.prune.method == best.method or not report["texts"]:
        return ""
    found = _found(dataclasses.replace(config, prune=best), store)
    if found is None:
        return f"the same command with prune={BEST} keeps more{_asked(command)}"
    return _compared(report, found)


def _compared(own: JSON, best: JSON) -> str:
    """Return the line with both perplexities: the mean over kinds of text where both runs have the same, else one."""
    over = [(report["texts"]["mean"] or {}).get("over") for report in (own, best)]
    prefix, words = ("perplexity/mean", "mean ") if over[0] and over[0] == over[1] else ("perplexity", "")
    own_text, best_text = (w.perplexity(_last(main_figures(report), prefix)) for report in (own, best))
    return f"prune={BEST} in the same run has a {words}held-out perplexity of {best_text}; here it is {own_text}"


def _last(figures: JSON, prefix: str) -> float | None:
    """Return the figure of the run's last model: recovered, else pruned."""
    found: list[float | None] = [figures[f"{prefix}/{model}"] for model in ("recovered", "pruned")]
    return next((value for value in found if value is not None), None)


def _best(prune: PruneConfig) -> PruneConfig:
    """Return the options of `prune=best` with the budget and the seed of `prune`."""
    said = written("prune", BEST) | {name: getattr(prune, name) for name in (*CARRIED, "seed")}
    options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CRITERIA[said["method"]].config), said))
    assert isinstance(options, PruneConfig)
    return options


def _found(config: Config, store: Store) -> JSON | None:
    """Return the report of `config`; None where the store has none."""
    try:
        node = build_graph(config).roles["report"]
        artifact, _ = store.check(store.directory("report", node.label, node.key), node.payload, {})
        return None if artifact is None else dict(read_json(artifact.path / "report.json"))
    except UserError:
        # Such a run is not possible, or its report was damaged: neither is a fault of the run that has ended.
        return None


def _asked(command: str) -> str:
    """Return ": " and the command with `prune=best`; empty where the run was part of a sweep or called from a program.

    Options of the other criterion are left out, as they would be mistakes.
    """
    words = shlex.split(command)
    if words[:3] != ["python", "-m", "pipeline"] or {"-m", "--multirun"} & set(words[3:]):
        return ""
    names = [word.partition("=")[0] for word in words]
    carried = {f"prune.{name}" for name in (*CARRIED, "seed")}
    kept = [word for word, name in zip(words, names, strict=True) if name in carried or not _of_prune(name)]
    return f": {shlex.join([*kept[:3], f'prune={BEST}', *kept[3:]])}"


def _of_prune(name: str) -> bool:
    """Return whether a word of the command line chooses or sets something of the prune group."""
    return name.lstrip("+~").partition(".")[0] == "prune"

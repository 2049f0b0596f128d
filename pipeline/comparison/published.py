"""Published scores for runs of the same model by the same protocol: LLM-Adapters' generated answers on eight tasks.

Only figures that were read in their source are here, all of models that were fine-tuned whole, without pruning. So they
stand beside runs with `prune=none` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.comparison.run import Run
from stages.report import wording as w
from stages.report.blocks import Table

HEADING = "Published, of the same model by the same protocol"
LLM_ADAPTERS, DORA = "LLM-Adapters, arXiv 2304.01933", "DoRA, arXiv 2402.09353"
TASKS = {"boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
PROTOCOL = {"name": "generation", "beams": 4, "new_tokens": 32, "limit": None}
ROWS = {
    "llama-7b": (
        ("prefix", 0.646, LLM_ADAPTERS),
        ("series", 0.708, LLM_ADAPTERS),
        ("parallel", 0.723, LLM_ADAPTERS),
        ("lora r32", 0.747, LLM_ADAPTERS),
        ("dora r32", 0.784, DORA),
    ),
    "llama-13b": (("lora", 0.805, DORA), ("dora", 0.815, DORA)),
    "llama2-7b": (("lora", 0.776, DORA), ("dora r16", 0.805, DORA)),
    "llama3-8b": (("lora", 0.808, DORA), ("dora", 0.852, DORA)),
}
"""{model: (adapter, mean accuracy, source) of each row}."""


def published(group: Sequence[Run]) -> Table | None:
    """Return the published rows of the models in a group that were judged by the same protocol; None without any."""
    models = dict.fromkeys(run.report["model"] for run in group if _comparable(run))
    rows = [
        [model, adapter, w.percent(accuracy), f"published: {source}"]
        for model in models
        for adapter, accuracy, source in ROWS.get(model, ())
    ]
    return Table(("model", "adapter", "accuracy", "source"), rows, words=(1, 3)) if rows else None


def _comparable(run: Run) -> bool:
    report = run.report
    protocol = report["protocol"] or {}
    alike = all(name in protocol and protocol[name] == value for name, value in PROTOCOL.items())
    return alike and report["prune"] == "none" and set(report["tasks"]) == TASKS

"""The pipeline: it composes a configuration, plans the graph of stages, keeps their artifacts and runs what is missing.

From Python:

    import pipeline

    print(pipeline.plan("model=llama-7b", "ratio=0.2"))
    run = pipeline.run("prune=best", "ratio=0.3", "adapter=rora")
    run.report["perplexity"], run.model, run.store

and with a model that is in memory:

    pruned = pipeline.prune_model(model, tokenizer, ratio=0.3, text=rows)
    recovered = pipeline.recover_model(pruned, tokenizer, rows, teacher=model)
    pipeline.evaluate_model(recovered, tokenizer, ["piqa", "arc_easy"])

Importing `pipeline` loads neither torch nor Hydra. A public name loads what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import Plan, Run, UserError, compose, plan, run
    from pipeline.live.evaluate import evaluate_model
    from pipeline.live.prune import prune_model
    from pipeline.live.recover import recover_model
    from pipeline.live.rows import load_rows

__all__ = [
    "Plan",
    "Run",
    "UserError",
    "compose",
    "evaluate_model",
    "load_rows",
    "plan",
    "prune_model",
    "recover_model",
    "run",
]

HOMES = {
    "Plan": "api",
    "Run": "api",
    "UserError": "api",
    "compose": "api",
    "plan": "api",
    "run": "api",
    "evaluate_model": "live.evaluate",
    "load_rows": "live.rows",
    "prune_model": "live.prune",
    "recover_model": "live.recover",
}
"""The submodule of each public name. No public name is also a submodule's: Python returns the module once imported."""


def __getattr__(name: str) -> Any:
    """Return the public `name`, importing what it needs."""
    if name not in HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    return getattr(import_module(f"pipeline.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)

"""The command's work from Python: `compose`, `plan` and `run` take overrides with the command line's meaning.

Example:

    import pipeline

    run = pipeline.run("prune=best", "ratio=0.3", "adapter=rora")
    run.report["perplexity"], run.model, run.store
"""

from __future__ import annotations

import logging
import shlex
import sys
from datetime import datetime
from pathlib import Path

from pipeline import execution
from pipeline.execution import Plan, Run
from pipeline.schema.compose import compose
from pipeline.schema.config import Action, Config
from stages.errors import UserError

__all__ = ["Plan", "Run", "UserError", "compose", "plan", "run"]


def plan(*overrides: str, config: Config | None = None) -> Plan:
    """Return the plan that `python -m pipeline action=plan` with these overrides prints. Nothing is built.

    Args:
        overrides: as on the command line.
        config: a configuration made otherwise, in place of overrides.

    Raises:
        UserError: something the user can mend.
    """
    return execution.plan(_config(overrides, config), overrides)


def run(*overrides: str, config: Config | None = None, directory: Path | str | None = None) -> Run:
    """Do what `python -m pipeline` with these overrides does, and return the run's report, models and store.

    Args:
        overrides: as on the command line.
        config: a configuration made otherwise, in place of overrides.
        directory: where the report is written; a new one under `outputs` unless named.

    Raises:
        UserError: something the user can mend.
    """
    settings = _config(overrides, config)
    if settings.action is not Action.run:
        raise UserError("pipeline.run runs. What a run would do is pipeline.plan's to say: leave action=plan out.")
    _show_progress()
    # Microseconds, so that runs begun in one second have directories of their own.
    own = Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}" if directory is None else Path(directory)
    command = shlex.join(["python", "-m", "pipeline", *overrides])
    return execution.run(settings, own.expanduser().resolve(), command, overrides)


def _config(overrides: tuple[str, ...], config: Config | None) -> Config:
    """Return `config`, or the configuration that `overrides` compose.

    Raises:
        TypeError: both are given.
        UserError: an override is of the command line alone, or means nothing.
    """
    if own := next((override for override in overrides if override.lstrip("+~").startswith("hydra.")), None):
        raise UserError(
            f"{own} is read on the command line alone. In Python pipeline.run(…, directory=DIR) names a run's."
        )
    if config is not None and overrides:
        raise TypeError("give overrides or a config: a config's fields are set in Python")
    return compose(*overrides) if config is None else config


def _show_progress() -> None:
    """Let the run say what it does on standard error, unless the program has set up logging of its own."""
    log = logging.getLogger("pipeline")
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.setLevel(logging.INFO)

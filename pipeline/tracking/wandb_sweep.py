"""A sweep file of W&B whose agents run the pipeline: each value between commas becomes a value to search over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.common.files import write_text
from stages.errors import UserError

SEARCH = ("adapter=rora,dora", "adapter.rank=8,32", "recover.learning_rate=0.0003,0.001,0.003")
"""What is searched over where nothing is given."""
SOUGHT = {"name": "perplexity/mean/recovered", "goal": "minimize"}
"""What a search that learns from its runs would make small: perplexity of held-out text."""


def write_sweep(output: Path, overrides: Sequence[str], project: str, entity: str | None) -> str:
    """Write the sweep file and return how to start it.

    Args:
        output: the file.
        overrides: as on the command line. One whose value has commas is searched over, the others are for every run.
        project: W&B's project.
        entity: the user or team that the project belongs to; None is the account's own.

    Raises:
        UserError: an override is wrong, or none has values to search over.
    """
    content = sweep(overrides or SEARCH, project, entity)
    write_text(output, yaml.safe_dump(content, sort_keys=False))
    return f"{output}\nwandb sweep {output}   # prints the agent's command: wandb agent SWEEP"


def sweep(overrides: Sequence[str], project: str, entity: str | None) -> dict[str, Any]:
    """Return the sweep file's content. Its agents send their runs to W&B."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from pipeline.schema.compose import compose
    from pipeline.schema.config import register
    from pipeline.schema.overrides import check_arguments

    register()
    check_arguments(list(overrides))
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    searched = {one.get_key_element(): list(one.sweep_string_iterator()) for one in parsed if one.is_sweep_override()}
    if not searched:
        raise UserError("no override has values to search over. Give one as NAME=VALUE,VALUE: adapter=rora,dora.")
    fixed = [word for word, one in zip(overrides, parsed, strict=True) if not one.is_sweep_override()]
    fixed += ["tracker=wandb", "tracker.mode=online", f"tracker.project={project}"]
    fixed += [f"tracker.entity={entity}"] if entity else []
    for name, values in searched.items():
        for value in values:
            # Each value with the first of the others: a mistake shows here, and not in an agent's log.
            first = [f"{other}={found[0]}" for other, found in searched.items() if other != name]
            compose(*fixed, *first, f"{name}={value}")
    return {
        "project": project,
        **({"entity": entity} if entity else {}),
        "program": "pipeline",
        "method": "grid",
        "metric": dict(SOUGHT),
        "parameters": {name: {"values": [_value(text) for text in values]} for name, values in searched.items()},
        # W&B writes each parameter as NAME=VALUE in the place of the last word, which is Hydra's way too.
        "command": ["${env}", "${interpreter}", "-m", "${program}", *fixed, "${args_no_hyphens}"],
    }


def _value(text: str) -> int | float | str:
    """Return a number as such, so that W&B draws it on an axis. Other values stay as they were written."""
    value = yaml.safe_load(text)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text

"""A W&B report that overlays the recovery curves of a project: all of them, by adapter, and by pruned model.

It is built from the names that the tracker writes, so it needs no network. W&B fills it with the project's runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.tracking.tracker import RECOVER, TOKENS
from pipeline.tracking.wandb_tracker import silent_wandb
from stages.common.files import read_json, write_json
from stages.errors import UserError
from stages.stage import JSON

TITLE = "Recoveries side by side"
RECOVERIES = f"Metric('jobType') = '{RECOVER}'"
"""Only recoveries: a pruning has no curve."""
CURVES = {
    "validation_loss": "Loss of held-out rows, nats a token",
    "validation_perplexity": "Perplexity of held-out rows",
    "curve_bits_per_byte": "Bits per byte of right answers",
    "curve_accuracy": "Accuracy",
}
"""Curves of a recovery that are drawn over tokens, and their titles."""
SCORES = {
    "perplexity/mean/recovered": "Perplexity of held-out text",
    "accuracy/recovered": "Mean accuracy",
    "recovered/perplexity/mean": "Share of the loss that came back",
}
"""Figures at the end that are drawn as bars, and their titles."""
GROUPS = {
    "All recoveries": ("", "Each curve is one recovery."),
    "By adapter": (
        f"config.{RECOVER}.adapter.name",
        "Each curve is the mean over the recoveries with one adapter. The band is from the lowest to the highest.",
    ),
    "By pruned model": (
        "group",
        "Each curve is the mean over the recoveries of one pruned model. The band is from the lowest to the highest.",
    ),
}
"""Sections of the report: how the curves are grouped, and what a reader sees."""
TABLES = {"results": "Scores of every recovery, with 95 % intervals", "kept": "Heads and channels that were kept"}
"""Tables of the tracker, and their titles."""


def report(project: str, entity: str | None, output: Path, *, online: bool) -> str:
    """Build the report, write it to `output`, and return where it is. With `online` it is saved to W&B too.

    A report that was saved before from the same file is replaced.

    Raises:
        UserError: the package is not installed, or W&B did not take the report.
    """
    if not online:
        write_json(output, {"project": project, "entity": entity, "spec": spec(build(project, entity or ""))})
        return f"{output} (not saved to W&B: --online does)"
    wandb = silent_wandb()
    try:
        built = build(project, entity or wandb.Api().default_entity)
        built.id = _saved_before(output, project, entity)
        built.save()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"W&B did not take the report ({error}). Log in with wandb login, or leave --online out."
        ) from None
    about = {"project": project, "entity": entity, "id": built.id, "url": built.url}
    write_json(output, about | {"spec": spec(built)})
    return str(built.url)


def build(project: str, entity: str) -> Any:
    """Return the report as wandb-workspaces has it.

    Raises:
        UserError: the package is not installed.
    """
    silent_wandb()
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise UserError(
            "a W&B report needs the package wandb-workspaces, which is not installed. Install the extra: "
            "pip install 'prune-recover[wandb-report]', in a checkout pip install -e '.[wandb-report]'."
        ) from None
    blocks: list[Any] = [wr.TableOfContents()]
    for heading, (key, told) in GROUPS.items():
        # A run set without a project is the report's own.
        runs = wr.Runset(name=heading, filters=RECOVERIES, groupby=[key] if key else [])
        blocks += [wr.H2(heading), wr.P(told), wr.PanelGrid(runsets=[runs], panels=_panels(wr, key))]
    for name, title in TABLES.items():
        runs = wr.Runset(name=title, filters=RECOVERIES)
        panel = wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(x=0, y=0, w=24, h=12))
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=[panel])]
    told = f"The recovery curves of {project}, over tokens trained on."
    return wr.Report(project=project, entity=entity, title=TITLE, description=told, blocks=blocks, width="fluid")


def spec(built: Any) -> JSON:
    """Return the report as W&B gets it."""
    # The package has no public way to see a report without saving it.
    content: JSON = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return content


def _panels(wr: Any, key: str) -> list[Any]:
    grouped: dict[str, Any] = {}
    if key:
        by = wr.Config(key.removeprefix("config.")) if key.startswith("config.") else key
        grouped = {"groupby": by, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    lines = [
        wr.LinePlot(
            title=title,
            x=TOKENS,
            y=[f"{RECOVER}/{name}"],
            title_x="tokens",
            layout=wr.Layout(x=12 * (place % 2), y=8 * (place // 2), w=12, h=8),
            **grouped,
        )
        for place, (name, title) in enumerate(CURVES.items())
    ]
    bars = [
        wr.BarPlot(title=title, metrics=[name], layout=wr.Layout(x=8 * place, y=16, w=8, h=8))
        for place, (name, title) in enumerate(SCORES.items())
    ]
    return [*lines, *bars]


def _saved_before(output: Path, project: str, entity: str | None) -> str:
    """Return the id of the report that `output` tells of; "" where it tells of none, or of another project."""
    if not output.is_file():
        return ""
    told = read_json(output)
    same = told.get("project") == project and told.get("entity") == entity
    return str(told.get("id", "")) if same else ""

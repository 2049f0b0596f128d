"""`python -m pipeline.wandb sync | report | sweep`: send local runs to W&B, overlay their curves, and search there."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.console.ending import status_of
from pipeline.console.lines import say
from pipeline.tracking.tracker import TrackerConfig
from stages.common.files import users_path


def main(arguments: list[str] | None = None) -> None:
    """Run one subcommand. An error of the user's ends the process with one line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.wandb", description="Weights & Biases.")
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser("sync", help="send the runs that were recorded offline, each once")
    send.add_argument("--directory", default=".", help="tracker.directory of the runs; here .")
    overlay = commands.add_parser("report", help="build a W&B report that overlays the recovery curves of a project")
    overlay.add_argument("--online", action="store_true", help="save it to W&B, too")
    search = commands.add_parser("sweep", help="write a sweep file whose agent runs the pipeline")
    search.add_argument("overrides", nargs="*", help="as on the command line; a value with commas is searched over")
    for command, name in ((overlay, "outputs/wandb-report.json"), (search, "outputs/wandb-sweep.yaml")):
        command.add_argument("--project", default=TrackerConfig().project, help="tracker.project of the runs")
        command.add_argument("--entity", help="the user or team that the project belongs to; the account's own")
        command.add_argument("--output", default=name, help=f"the file; here {name}")
    given = parser.parse_args(arguments)
    if status := status_of(lambda: _asked(given)):
        raise SystemExit(status)


def _asked(given: argparse.Namespace) -> None:
    if given.command == "sync":
        from pipeline.tracking.wandb_sync import sync

        for line in sync(users_path(given.directory)):
            say(line)
    elif given.command == "report":
        from pipeline.tracking.wandb_report import report

        say(str(report(given.project, given.entity, Path(given.output), online=given.online)))
    else:
        from pipeline.tracking.wandb_sweep import write_sweep

        say(str(write_sweep(Path(given.output), given.overrides, given.project, given.entity)))


if __name__ == "__main__":
    main()

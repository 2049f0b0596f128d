"""Sends local W&B runs: each run once, and of an online run that was cut off only what W&B does not have.

`wandb sync` itself sends a curve again where it sends a second file of one run. Here the newest complete file of each
run is chosen, and points that W&B already has are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking.wandb_file import mark_sent, readable, sent, without_steps
from pipeline.tracking.wandb_tracker import TRACKED, silent_wandb
from stages.errors import UserError

ERROR = re.compile(r"^wandb: ERROR (.*)$", re.MULTILINE)
"""How `wandb sync` tells that a part of a run was given up."""
PATIENCE = {"WANDB__FILE_STREAM_TIMEOUT_SECONDS": "60", "WANDB__FILE_STREAM_RETRY_MAX": "3"}
"""W&B's own settings for the sending of a curve: how long it waits for an answer, and how often it asks again. By its
defaults it asks a server that takes connections and never answers for hours."""


@dataclass(frozen=True, slots=True)
class Local:
    """The file of a run that is to be sent, with all local files of that run."""

    file: Path
    all: tuple[Path, ...]

    @property
    def id(self) -> str:
        """The run's id."""
        return self.file.stem.removeprefix("run-")


def unsent(directory: Path) -> list[Local]:
    """Return the runs below `directory` that have not been sent, oldest first.

    Of several files of one run the newest that is complete counts, else the newest.
    """
    files: dict[str, list[Path]] = {}
    for file in sorted(directory.glob("wandb/*run-*/run-*.wandb"), key=_started):
        files.setdefault(file.stem, []).append(file)
    chosen = [Local(max(own, key=_complete_and_new), tuple(own)) for own in files.values()]
    return sorted((local for local in chosen if not sent(local.file)), key=lambda local: _started(local.file))


def sync(directory: Path) -> Iterable[str]:
    """Send all runs below `directory` that have not been sent; yield a line for each as it is done.

    Raises:
        UserError: W&B cannot be reached, or a run was not taken.
    """
    waiting = unsent(directory)
    if not waiting:
        yield f"nothing to send: every run in {directory / 'wandb'} was sent, or there is none"
        return
    for place, local in enumerate(waiting, start=1):
        # Taken before: what is written during the send was not sent.
        written = {file: file.stat().st_mtime_ns for file in local.all}
        name = _send(local)
        for file, time in written.items():
            mark_sent(file, time)
        yield f"sent {place} of {len(waiting)}: {name}"


def _send(local: Local) -> str:
    """Send one run and return its name."""
    run = next((record.run for record in readable(local.file) if record.WhichOneof("record_type") == "run"), None)
    if run is None:
        raise UserError(f"{local.file} has no run in it: it was cut before its run began. Delete {local.file.parent}.")
    held = _steps_held(run)
    with tempfile.TemporaryDirectory() as made:
        # A copy, because W&B refuses a file whose last record is cut: of a run that was killed, or still runs.
        copy = Path(made) / "wandb" / local.file.parent.name
        copy.mkdir(parents=True)
        (copy / "files").symlink_to(local.file.parent / "files")
        file = copy / local.file.name
        without_steps(local.file, file, held)
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", str(file)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=PATIENCE | os.environ | {"WANDB_SILENT": "false"},  # its words are the reason where it fails
        )
        # `wandb sync` also ends well where it was refused. Its marker says that a run was taken, and it sets the marker
        # even where the curve was not: then a line of its output alone says so.
        failed = ERROR.findall(f"{done.stdout}\n{done.stderr}")
        if done.returncode or failed or not sent(file):
            reason = " ".join(failed) or (done.stderr or done.stdout).strip()
            raise UserError(f"W&B did not take {local.file.parent}: {reason}")
    return f"{run.display_name} ({run.run_id})"


def _steps_held(run: Any) -> int:
    """Return the number of steps of this run's curve that W&B has."""
    wandb = silent_wandb()
    from wandb.apis.public import RunNotFoundError

    try:
        api = wandb.Api()
        path = "/".join([run.entity or api.default_entity, run.project, run.run_id])
    except Exception as error:
        raise UserError(
            f"W&B can't be reached ({error}). Log in with wandb login, or set WANDB_API_KEY, and try again."
        ) from error
    try:
        return int(api.run(path).lastHistoryStep) + 1
    except Exception as error:
        if isinstance(getattr(error, "exc", error), RunNotFoundError):
            return 0
        raise UserError(f"W&B can't be asked for {path} ({error}). Nothing of it was sent: try again.") from error


def _started(file: Path) -> str:
    """Return the time in the directory's name, "run-TIME-ID" or "offline-run-TIME-ID"."""
    return file.parent.name.removeprefix("offline-").removeprefix("run-")


def _complete_and_new(file: Path) -> tuple[bool, str]:
    return (file.parent / TRACKED).is_file(), _started(file)

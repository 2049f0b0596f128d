"""Trackers that follow a recovery, in W&B or nowhere. W&B is offline unless asked, and never stops a run.

One recovery is one W&B run. Its id comes from the recovery's key, its group from what was pruned. The curve's x axis is
`recover/tokens`. The curve arrives live while the recovery is built. On a cache hit it is replayed from the recovery's
history, unless a local run already holds all of it. Whatever W&B does wrong becomes one warning.

To read a run back, or to send it: `wandb sync wandb/offline-run-*`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from stages.common.choices import lookup
from stages.common.files import read_json, write_json
from stages.errors import UserError
from stages.report.summary import main_figures
from stages.stage import JSON

log = logging.getLogger("pipeline")

TOKENS = "recover/tokens"
ID_DIGITS = 16
"""Hex digits of the recovery's key in a W&B run id, as in an artifact's directory."""
TRACKED = "tracked.json"
"""The file beside an offline run that is complete. It holds the digest of the run's contents."""
PATIENCE = 15
"""The most seconds that an unreachable W&B may delay the run at its start."""
FINISH_PATIENCE = 120
"""The most seconds that a slow upload may delay the run at its end; the rest stays on disk for `wandb sync`."""


class Mode(Enum):
    """Whether W&B sends anything. Only `online` does."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """Where the recovery's curve is followed. Nothing here enters a key."""

    name: str = "none"
    """wandb or none."""
    project: str = "prune-recover"
    group: str | None = None
    """Name under which W&B groups runs; null takes what was pruned and by how much."""
    entity: str | None = None
    """User or team that an online run belongs to; null is the account's own."""
    mode: Mode = Mode.offline
    """offline writes files below `directory` and sends nothing. online needs an account. disabled does nothing."""
    directory: str = "."
    """Where W&B makes its `wandb/` directory, relative to the working directory."""
    files: bool = False
    """Whether W&B also gets the run directory's report files."""


class Tracker:
    """A tracker that does nothing, as `tracker=none` gives it, and the interface of the others."""

    def log(self, point: Mapping[str, Any]) -> None:
        """Take one point of the curve as it appears: a flat dictionary of numbers, with "tokens" among them."""

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take a finished recovery's whole curve. Points that were logged live are not repeated."""

    def summary(self, report: JSON, directory: Path | None = None) -> None:
        """Take the report's main figures and, where files are asked for, the report's files from `directory`."""

    def close(self, *, failed: bool = False) -> None:
        """Finish the run. Called once, however the run ended."""

    def __enter__(self) -> Tracker:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Finish the run, as a failed one where an exception passes through."""
        self.close(failed=kind is not None)


class WandbTracker(Tracker):
    """A W&B run that starts with the first thing to log, and that W&B's failures end with a warning."""

    def __init__(self, config: TrackerConfig, *, name: str, group: str, key: str, configuration: JSON) -> None:
        self.config, self.name, self.group, self.configuration = config, name, group, configuration
        self.id = key[:ID_DIGITS]
        self.directory = Path(config.directory).expanduser().resolve()
        self._run: Any = None
        self._points: dict[str, JSON] = {}
        self._sent = 0
        self._stopped = False
        self._digest = ""

    def log(self, point: Mapping[str, Any]) -> None:
        """Log one point at once. The first point starts the W&B run."""
        self._take(point)
        self._attempt(self._send)

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take the points. They are sent before the next live point, or with the summary."""
        for point in points:
            self._take(point)

    def summary(self, report: JSON, directory: Path | None = None) -> None:
        """Log the remaining points and the report's figures, unless a local run already holds exactly these."""
        figures = {name: value for name, value in main_figures(report).items() if value is not None}
        digest = _digest([sorted(self._points), figures, self.configuration, self.config.project])
        held = self._held(digest) if self._run is None and self.config.mode is Mode.offline else None
        if held is not None:
            log.info("W&B: %s already holds this recovery.", held)
            return
        if self._attempt(lambda: self._send_summary(figures, directory)):
            self._digest = digest

    def close(self, *, failed: bool = False) -> None:
        """Finish the W&B run. A run that holds everything is marked, so that a replay finds it."""
        run, self._run = self._run, None
        if run is None:
            return
        place = Path(run.dir).parent
        try:
            run.finish(exit_code=int(failed))
            if self._digest and not failed:
                write_json(place / TRACKED, {"digest": self._digest})
        except Exception as error:
            log.warning("W&B failed at its end (%s); what it has lies in %s.", _first_line(error), place)
            return
        if run.offline:
            log.info("W&B: offline run in %s; send it with: wandb sync %s", place, place)

    def _take(self, point: Mapping[str, Any]) -> None:
        """Keep the point unless it was taken before: a replay repeats what was logged live."""
        mark = json.dumps(point, sort_keys=True)
        self._points.setdefault(mark, {f"recover/{name}": value for name, value in point.items()})

    def _send(self) -> None:
        run = self._start()
        for place, point in enumerate(list(self._points.values())[self._sent :], start=self._sent):
            # The step is numbered: in an online run that is resumed, W&B drops the steps that it already has.
            run.log(point, step=place)
            self._sent = place + 1

    def _send_summary(self, figures: JSON, directory: Path | None) -> None:
        self._send()
        self._start().summary.update(figures)
        if self.config.files and directory is not None:
            for path in sorted(directory.glob("report.*")):
                self._start().save(str(path), base_path=str(directory), policy="end")

    def _start(self) -> Any:
        """Return the W&B run. Every setting is given here, so that no WANDB_ variable changes what is recorded."""
        if self._run is not None:
            return self._run
        # W&B would send error reports even offline. It reads this variable when it is imported.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self.directory.mkdir(parents=True, exist_ok=True)
        if self.config.mode is Mode.online:
            try:
                self._run = self._init(wandb, "online")
            except Exception as error:
                log.warning("W&B can't be reached (%s); recording offline instead.", _first_line(error))
                wandb.teardown()  # otherwise its service keeps the id of the run that failed to start
        if self._run is None:
            self._run = self._init(wandb, "offline")
        self._run.define_metric(TOKENS, hidden=True)
        # Curves run over tokens, not over W&B's own step.
        self._run.define_metric("recover/*", step_metric=TOKENS)
        return self._run

    def _init(self, wandb: Any, mode: str) -> Any:
        # Only what this class logs is recorded: no console output, code, git state, package list or hardware figures.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            silent=True,
            init_timeout=PATIENCE,
            login_timeout=PATIENCE,
            finish_timeout=FINISH_PATIENCE,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            name=self.name,
            group=self.group,
            id=self.id,
            # The id is the recovery's, so a recovery that is built or replayed again goes on in its own run.
            resume="allow",
            # A sweep follows several recoveries in one process, each in a run of its own.
            reinit="create_new",
            dir=str(self.directory),
            mode=mode,
            tags=[],
            config=self.configuration,
            settings=settings,
        )

    def _held(self, digest: str) -> Path | None:
        """Return the directory of a local run of this recovery that was completed with `digest`, or None."""
        for marker in sorted(self.directory.glob(f"wandb/*run-*-{self.id}/{TRACKED}")):
            try:
                if read_json(marker).get("digest") == digest:
                    return marker.parent
            except (UserError, OSError, AttributeError):
                continue
        return None

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Return whether `action` succeeded. W&B may raise anything, and no error of it may stop a recovery."""
        if self._stopped:
            return False
        try:
            action()
        except Exception as error:
            self._stopped = True
            log.warning("W&B failed (%s); the run goes on without it.", _first_line(error))
            return False
        return True


def open_tracker(
    config: TrackerConfig, *, name: str, group: str, key: str, configuration: Mapping[str, Any]
) -> Tracker:
    """Return the tracker of one recovery. `key` is the recovery's key; `group` names what was pruned.

    Raises:
        UserError: the tracker is unknown.
    """
    return lookup("tracker", config.name, TRACKERS)(
        config, name=name, group=group, key=key, configuration=dict(configuration)
    )


def _wandb(config: TrackerConfig, **run: Any) -> Tracker:
    return Tracker() if config.mode is Mode.disabled else WandbTracker(config, **run)


def _none(config: TrackerConfig, **run: Any) -> Tracker:
    return Tracker()


TRACKERS = {"wandb": _wandb, "none": _none}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

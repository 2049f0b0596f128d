"""Following a recovery in W&B: offline unless asked, and never in the way of the run.

One W&B run a recovery, with an id from the recovery's key and grouped by what was pruned. The curve is on
`recover/tokens`; it arrives live while the recovery is built and is replayed from its history on a cache hit, where
a local run that already holds all of it is left as it is. Whatever W&B does wrong becomes one warning.

Read a run back, or send it: `wandb sync wandb/offline-run-*`.
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
"""Written beside an offline run once it is complete: the digest of what it holds."""
PATIENCE = 15
"""Seconds that an unreachable W&B may hold the run up at its start."""
FINISH_PATIENCE = 120
"""Seconds that a slow upload may hold the run up at its end; the rest stays on disk for `wandb sync`."""


class Mode(Enum):
    """Whether W&B sends anything: only `online` does."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """Where the recovery curve is followed; nothing here enters a key."""

    name: str = "none"
    """wandb or none."""
    project: str = "prune-recover"
    group: str | None = None
    """Name under which runs stand together; null takes what was pruned and by how much."""
    entity: str | None = None
    """User or team that an online run belongs to; null is the account's own."""
    mode: Mode = Mode.offline
    """offline writes files below `directory` and sends nothing; online needs an account; disabled does nothing."""
    directory: str = "."
    """Where W&B makes its `wandb/` directory, relative to the working directory."""
    files: bool = False
    """Also give W&B the run directory's report."""


class Tracker:
    """Does nothing, as a context manager: what `tracker=none` gives, and what the others are used as."""

    def log(self, point: Mapping[str, Any]) -> None:
        """Take one point of the curve as it appears: a flat dictionary of numbers, "tokens" among them."""

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take a finished recovery's whole curve; points that were logged live are not repeated."""

    def summary(self, report: JSON, directory: Path | None = None) -> None:
        """Take the report's main figures (and, when files are asked for, its files from `directory`)."""

    def close(self, *, failed: bool = False) -> None:
        """Finish the run; called once, whatever happened."""

    def __enter__(self) -> Tracker:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Finish the run, as failed where an exception passes through."""
        self.close(failed=kind is not None)


class WandbTracker(Tracker):
    """A W&B run that starts when there is something to log, and gives up with a warning when W&B fails."""

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
        """Log one point at once, starting the W&B run with the first."""
        self._take(point)
        self._attempt(self._send)

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take the points; they are sent before the next live one, or with the summary."""
        for point in points:
            self._take(point)

    def summary(self, report: JSON, directory: Path | None = None) -> None:
        """Log what is left and the report's figures, unless a local run of this recovery already holds just these."""
        figures = {name: value for name, value in main_figures(report).items() if value is not None}
        digest = _digest([sorted(self._points), figures, self.configuration, self.config.project])
        held = self._held(digest) if self._run is None and self.config.mode is Mode.offline else None
        if held is not None:
            log.info("W&B: %s already holds this recovery.", held)
            return
        if self._attempt(lambda: self._send_summary(figures, directory)):
            self._digest = digest

    def close(self, *, failed: bool = False) -> None:
        """Finish the W&B run; one that holds everything is marked, so that a replay finds it."""
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
        """Keep the point unless it was taken before: a replay meets what was logged live."""
        mark = json.dumps(point, sort_keys=True)
        self._points.setdefault(mark, {f"recover/{name}": value for name, value in point.items()})

    def _send(self) -> None:
        run = self._start()
        for place, point in enumerate(list(self._points.values())[self._sent :], start=self._sent):
            # A numbered step: where an online run of this recovery is resumed, W&B drops the steps that it has.
            run.log(point, step=place)
            self._sent = place + 1

    def _send_summary(self, figures: JSON, directory: Path | None) -> None:
        self._send()
        self._start().summary.update(figures)
        if self.config.files and directory is not None:
            for path in sorted(directory.glob("report.*")):
                self._start().save(str(path), base_path=str(directory), policy="end")

    def _start(self) -> Any:
        """Return the W&B run, started with everything set here so that no WANDB_ variable changes its meaning."""
        if self._run is not None:
            return self._run
        # Error reports would be sent even offline; wandb reads this when it is imported.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self.directory.mkdir(parents=True, exist_ok=True)
        if self.config.mode is Mode.online:
            try:
                self._run = self._init(wandb, "online")
            except Exception as error:
                log.warning("W&B can't be reached (%s); recording offline instead.", _first_line(error))
                wandb.teardown()  # else its service keeps the id of the run that failed to start
        if self._run is None:
            self._run = self._init(wandb, "offline")
        self._run.define_metric(TOKENS, hidden=True)
        self._run.define_metric("recover/*", step_metric=TOKENS)
        return self._run

    def _init(self, wandb: Any, mode: str) -> Any:
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
            resume="allow",
            reinit="create_new",
            dir=str(self.directory),
            mode=mode,
            tags=[],
            config=self.configuration,
            settings=settings,
        )

    def _held(self, digest: str) -> Path | None:
        """Return the local run of this recovery that was completed with exactly `digest`."""
        for marker in sorted(self.directory.glob(f"wandb/*run-*-{self.id}/{TRACKED}")):
            try:
                if read_json(marker).get("digest") == digest:
                    return marker.parent
            except (UserError, OSError, AttributeError):
                continue
        return None

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Return whether it went well; W&B raises what it likes, and none of that may stop a recovery."""
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
    """Return the tracker of one recovery: `key` is the recovery's, `group` names what was pruned.

    Raises:
        UserError: unknown tracker.
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

"""A tracker that writes to a local dashboard of trackio: one SQLite file a project, no account, nothing sent."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.tracking.tracker import (
    RECOVER,
    Attempts,
    Curve,
    Findings,
    Subject,
    Tracker,
    TrackerConfig,
    log,
)
from stages.common.files import read_json, users_path, write_json
from stages.errors import UserError

FOLDER = "TRACKIO_DIR"
"""The variable that says where trackio keeps its files. It is read when trackio is imported."""
CONCLUDED = "concluded.json"
"""The file beside trackio's that holds, for each run that is complete, the digest of its contents."""
NAME_DIGITS = 8
"""Hex digits of the key in a run's name: trackio finds a run to go on in by its name."""


class TrackioTracker(Tracker):
    """Runs of trackio, one for each job, that start with the first thing to write."""

    def __init__(self, config: TrackerConfig, subjects: Mapping[str, Subject]) -> None:
        if importlib.util.find_spec("trackio") is None:
            raise UserError(
                "tracker=trackio needs the package trackio, which is not installed. Install the extra: "
                "pip install 'prune-recover[trackio]', in a checkout pip install -e '.[trackio]'."
            )
        self.config, self.subjects = config, subjects
        self.attempt = Attempts("trackio")
        self.curve = Curve()
        self.directory = users_path(config.directory) / "trackio"
        self._run: Any = None
        self._held = -1
        self._wrote = False
        self._away: dict[str, str] = {}

    def log(self, point: Mapping[str, Any]) -> None:
        """Log one point at once. The first point starts the run."""
        self.curve.take(point)
        self.attempt(self._send_curve)

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take the points. They are sent before the next live point, or with what was found."""
        self.attempt(lambda: self.curve.take_all(points))

    def conclude(self, find: Callable[[str], Findings]) -> None:
        """Write the remaining points and what was found, unless these are already there."""
        for job in self.subjects:
            self.attempt(lambda job=job: self._conclude(job, find(job)))  # type: ignore[misc]

    def close(self, *, failed: bool = False) -> str:
        """Finish a run that was not concluded, and return how to open the dashboard."""
        self.attempt(self._finish)
        if not self._wrote or self.attempt.over:
            return ""
        return f"trackio: {FOLDER}={self.directory} trackio show --project {self.config.project}"

    def _send_curve(self) -> None:
        if self.curve:
            run = self._start(RECOVER)
            with _quiet():
                # A run that goes on already has the first points.
                self.curve.send(lambda point, place: run.log(point, step=place) if place > self._held else None)

    def _conclude(self, job: str, found: Findings) -> None:
        points = self.curve.marks() if job == RECOVER else []
        digest = found.digest(points, dict(self.subjects[job].configuration))
        if self._concluded().get(self._name(job)) == digest:
            log.info("trackio: %s already holds %s.", self.directory, self._name(job))
            # A recovery that was built again has logged live. The next job is not to go on in its run.
            self._finish()
            return
        if job == RECOVER:
            self._send_curve()
        run = self._start(job)
        import trackio

        tables = {
            name: trackio.Table(data=[dict(zip(table.columns, row, strict=True)) for row in table.rows])
            for name, table in found.tables.items()
        }
        with _quiet():
            run.log({**found.figures, **tables}, step=max(self._held + 1, len(points)))
        self._finish()
        write_json(self.directory / CONCLUDED, self._concluded() | {self._name(job): digest})

    def _start(self, job: str) -> Any:
        """Return the job's run. Nothing that a variable says can send it elsewhere."""
        if self._run is not None:
            return self._run
        self.directory.mkdir(parents=True, exist_ok=True)
        # trackio's writer reads the variables in its own thread. After a failure they stay away: it may live on.
        self._away |= _take_variables()
        os.environ[FOLDER] = str(self.directory)
        subject, name = self.subjects[job], self._name(job)
        with _quiet(), _hub_offline():
            import trackio
            from trackio.sqlite_storage import SQLiteStorage

            last = SQLiteStorage.get_max_step_for_run(self.config.project, run=name)
            self._held = -1 if last is None else last
            self._run = trackio.init(
                project=self.config.project,
                name=name,
                group=subject.group,
                config=dict(subject.configuration) | {"job": job},
                resume="allow",
                embed=False,
                auto_log_cpu=self.config.system,
                auto_log_gpu=self.config.system,
            )
        self._wrote = True
        return self._run

    def _finish(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            import trackio

            with _quiet():
                # Not `run.finish`: trackio would end the run again, and say so, when the process ends.
                trackio.finish()
            os.environ.update(self._away)
            self._away.clear()

    def _name(self, job: str) -> str:
        return f"{self.subjects[job].name}-{self.subjects[job].key[:NAME_DIGITS]}"

    def _concluded(self) -> dict[str, str]:
        try:
            return dict(read_json(self.directory / CONCLUDED))
        except (UserError, OSError, TypeError, ValueError):
            return {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what trackio prints from between our lines. A warning of it is a failure: it warns where it loses points.

    Raises:
        RuntimeError: trackio warned.
    """
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    if ours := [str(one.message) for one in warned if "trackio" in str(one.filename)]:
        raise RuntimeError(ours[0])


def _take_variables() -> dict[str, str]:
    """Take trackio's variables away and return them: they could send a run to a server, a Space or a bucket."""
    return {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("TRACKIO_") and name != FOLDER}


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Keep huggingface_hub offline: trackio sends it the user's token at a run's start, to learn the user's name."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

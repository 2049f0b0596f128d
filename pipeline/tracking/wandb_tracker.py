"""A tracker that writes to W&B. It is offline unless asked, and never stops a run.

A recovery is one W&B run, with the job type "recover". The pruned model is another, with the job type "prune". Both
are in one group, so the recoveries of a pruned model stand together. Ids come from the artifacts' keys. The curve's x
axis is `recover/tokens`. It arrives live while the recovery is built. On a cache hit it is replayed from the
recovery's history, unless a local run already holds all of it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import wandb_file
from pipeline.tracking.tracker import (
    RECOVER,
    TOKENS,
    Attempts,
    Curve,
    Findings,
    Mode,
    Subject,
    Tracker,
    TrackerConfig,
    first_line,
    log,
)
from stages.common.files import read_json, users_path, write_json
from stages.errors import UserError

TRACKED = "tracked.json"
"""The file beside a run that is complete. It holds the digest of the run's contents."""
PATIENCE = 15
"""The most seconds that an unreachable W&B may delay the run at its start."""
FINISH_PATIENCE = 120
"""The most seconds that a slow upload may delay the run at its end. `pipeline.wandb sync` sends the rest later."""
LIVE_SECONDS = 15
"""Seconds between two sends of an online run's curve."""
FILE_PATIENCE = 10
"""The most seconds after a run's end until its file is whole. W&B needs a fraction of one."""
SYNC = "python -m pipeline.wandb sync"


class WandbTracker(Tracker):
    """W&B runs, one for each job, that start with the first thing to write. W&B's failures end it with a warning."""

    def __init__(self, config: TrackerConfig, subjects: Mapping[str, Subject]) -> None:
        self.attempt = Attempts("W&B")
        self.lines: list[str] = []
        silence()
        session = Session(config)
        # An agent of a W&B sweep gives the process the one run that is its own. It is the recovery's.
        jobs = list(subjects)[:1] if "WANDB_SWEEP_ID" in os.environ else subjects
        self.runs = {job: WandbRun(session, job, subjects[job]) for job in jobs}

    def log(self, point: Mapping[str, Any]) -> None:
        """Log one point at once. The first point starts the W&B run."""
        run = self.runs[RECOVER]
        run.curve.take(point)
        self.attempt(run.send_curve)

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take the points. They are sent before the next live point, or with what was found."""
        self.attempt(lambda: self.runs[RECOVER].curve.take_all(points))

    def conclude(self, find: Callable[[str], Findings]) -> None:
        """Write the remaining points and what was found, unless a local run already holds exactly these."""
        for job, run in self.runs.items():
            # Each is finished before the next begins: where that one cannot start, W&B's service starts anew.
            if self.attempt(lambda job=job, run=run: run.conclude(find(job))):  # type: ignore[misc]
                self.lines.append(run.finish(failed=False))

    def close(self, *, failed: bool = False) -> str:
        """Finish the W&B runs that were not concluded, and return where the first lies."""
        self.lines += [run.finish(failed=failed) for run in self.runs.values()]
        # One line is enough: the recovery's, where there is one. The pruning lies beside it.
        return next(filter(None, self.lines), "")


class Session:
    """How W&B is opened for all runs of one tracker. After a failure to go online they are all offline."""

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self.directory = users_path(config.directory)
        self.online = config.mode is Mode.online

    @property
    def sync(self) -> str:
        """The command that sends what was not sent."""
        return SYNC if self.directory == Path.cwd() else f"{SYNC} --directory {shlex.quote(str(self.directory))}"

    def open(self, job: str, subject: Subject) -> Any:
        """Return a new W&B run. Every setting is given here, so that no WANDB_ variable changes what is recorded."""
        wandb = silent_wandb()
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.online:
            try:
                run = self._init(wandb, "online", job, subject)
                log.info("W&B: this %s is at %s", job, run.url)
                return run
            except Exception as error:
                self.leave(error)
                wandb.teardown()  # otherwise its service keeps the id of the run that failed to start
        return self._init(wandb, "offline", job, subject)

    def leave(self, error: Exception) -> None:
        """Go offline because of `error`."""
        self.online = False
        log.warning(
            "W&B can't be used online (%s); recording offline instead. %s sends it later.", first_line(error), self.sync
        )

    def _init(self, wandb: Any, mode: str, job: str, subject: Subject) -> Any:
        # Only what this module writes is recorded: no console output, code, git state or package list. Figures of the
        # hardware are recorded where they are asked for.
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
            finish_timeout_raises=True,
            heartbeat_seconds=LIVE_SECONDS,
            x_file_stream_transmit_interval=LIVE_SECONDS,
            x_disable_stats=not self.config.system,
            x_disable_meta=not self.config.system,
            x_disable_machine_info=not self.config.system,
            x_save_requirements=False,
        )
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            name=subject.name,
            group=subject.group,
            job_type=job,
            id=subject.id,
            # The id is the artifact's, so a recovery that is built or replayed again goes on in its own run.
            resume="allow",
            # A sweep follows several recoveries in one process, each in a run of its own.
            reinit="create_new",
            dir=str(self.directory),
            mode=mode,
            tags=[],
            config=dict(subject.configuration),
            settings=settings,
        )


def silence() -> None:
    """Tell W&B to say nothing between our lines, to ask for no key and to send no error reports of its own.

    It reads these variables when it is imported, which a stage's library may do before the first thing is written.
    """
    os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def silent_wandb() -> Any:
    """Return the module `wandb`, silent."""
    silence()
    import wandb

    # Where it was imported before, the variables come too late for its lines.
    wandb.termsetup(wandb.Settings(silent=True), None)
    return wandb


class WandbRun:
    """One W&B run, of one job. It starts with the first thing to write."""

    def __init__(self, session: Session, job: str, subject: Subject) -> None:
        self.session, self.job, self.subject = session, job, subject
        self.curve = Curve()
        self._run: Any = None
        self._digest = ""

    def send_curve(self) -> None:
        """Send the points that were not sent."""
        if self.curve:
            self.curve.send(self._log(self._start()))

    def conclude(self, found: Findings) -> None:
        """Write the remaining points and what was found, unless a local run already holds exactly these."""
        config = self.session.config
        asked = [config.project, config.files, config.model, dict(self.subject.configuration)]
        digest = found.digest(self.curve.marks(), asked)
        held = self._held(digest) if self._run is None and not self.session.online else None
        if held is not None:
            log.info("W&B: %s already holds this %s.", held, "recovery" if self.job == RECOVER else "pruning")
            return
        try:
            self.send_curve()
            self._write(self._start(), found)
        except Exception as error:
            if not self.session.online:
                raise
            # W&B's own service waits through an outage, but to write a table W&B asks its server whether it may.
            self.session.leave(error)
            self._again_offline()
            self.send_curve()
            self._write(self._start(), found)
        self._digest = digest

    def _again_offline(self) -> None:
        """End the online run as far as it came. The curve begins anew in an offline run of the same id."""
        run, self._run = self._run, None
        self.curve.rewind()
        if run is not None:
            with contextlib.suppress(TimeoutError):
                run.finish(exit_code=0)

    def finish(self, *, failed: bool) -> str:
        """Finish the run and return where it is; "" where nothing was written or a warning says it.

        A run that holds everything is marked, so that a replay finds it.
        """
        run, self._run = self._run, None
        if run is None:
            return ""
        place = Path(run.dir).parent
        try:
            run.finish(exit_code=int(failed))
            file = place / f"run-{run.id}.wandb"
            if not wandb_file.wait(file, FILE_PATIENCE):
                raise OSError("its file is cut: is the disk full?")
            if self._digest and not failed:
                write_json(place / TRACKED, {"digest": self._digest})
            if not run.offline:
                wandb_file.mark_sent(file)
        except TimeoutError:
            told = "W&B was not sent all of this %s in %s s. %s sends the rest."
            log.warning(told, self.job, FINISH_PATIENCE, self.session.sync)
            return ""
        except Exception as error:
            log.warning("W&B failed at its end (%s); what it has lies in %s.", first_line(error), place)
            return ""
        return f"W&B: offline run in {place}; {self.session.sync} sends it" if run.offline else f"W&B: {run.url}"

    def _start(self) -> Any:
        if self._run is None:
            self._run = self.session.open(self.job, self.subject)
            if self.job == RECOVER:
                self._run.define_metric(TOKENS, hidden=True)
                # Curves run over tokens, not over W&B's own step.
                self._run.define_metric("recover/*", step_metric=TOKENS)
        return self._run

    def _log(self, run: Any) -> Callable[[dict[str, Any], int], None]:
        """Return what logs a point at its place. An online run that is resumed already has the first of them."""
        held = run.starting_step
        return lambda point, place: run.log(point, step=place) if place >= held else None

    def _write(self, run: Any, found: Findings) -> None:
        wandb = silent_wandb()
        tables = {
            name: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for name, table in found.tables.items()
        }
        # A table in the summary is no point of the curve, so writing it again makes no second one.
        run.summary.update({**found.figures, **tables})
        if found.manifest is not None:
            # By reference: W&B gets the file's place and digest, not the file.
            manifest = wandb.Artifact(f"{self.job}-{self.subject.id}", type="manifest")
            manifest.add_reference(found.manifest.as_uri(), name=found.manifest.name)
            run.log_artifact(manifest)
        if self.session.config.model and found.model is not None:
            weights = wandb.Artifact(f"{self.job}-{self.subject.id}-{found.model.name}", type="model")
            weights.add_dir(str(found.model))
            run.log_artifact(weights)
        if self.session.config.files:
            for path in found.files:
                run.save(str(path), base_path=str(path.parent), policy="end")

    def _held(self, digest: str) -> Path | None:
        """Return the directory of a local run of this job that was completed with `digest`, or None."""
        for marker in sorted(self.session.directory.glob(f"wandb/offline-run-*-{self.subject.id}/{TRACKED}")):
            try:
                if read_json(marker).get("digest") == digest:
                    return marker.parent
            except (UserError, OSError, AttributeError):
                continue
        return None

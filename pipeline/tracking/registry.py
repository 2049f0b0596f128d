"""Every tracker by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.tracking.tracker import Mode, Subject, Tracker, TrackerConfig
from pipeline.tracking.trackio_tracker import TrackioTracker
from pipeline.tracking.wandb_tracker import WandbTracker
from stages.common.choices import lookup


def open_tracker(config: TrackerConfig, subjects: Mapping[str, Subject]) -> Tracker:
    """Return the tracker of one run of the pipeline. `subjects` are its jobs; without one the tracker is silent.

    Raises:
        UserError: the tracker is unknown, or its package is not installed.
    """
    make = lookup("tracker", config.name, TRACKERS)
    return make(config, subjects) if subjects else Tracker()


def _wandb(config: TrackerConfig, subjects: Mapping[str, Subject]) -> Tracker:
    return Tracker() if config.mode is Mode.disabled else WandbTracker(config, subjects)


def _none(config: TrackerConfig, subjects: Mapping[str, Subject]) -> Tracker:
    return Tracker()


TRACKERS: dict[str, Callable[[TrackerConfig, Mapping[str, Subject]], Tracker]] = {
    "wandb": _wandb,
    "trackio": TrackioTracker,
    "none": _none,
}

"""What a store could lose without a loss: what no current report or export rests on, and no living run holds."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine.artifact import Artifact
from pipeline.engine.store import Store, lock_of
from pipeline.engine.unfinished import begun_with
from stages.registry import STAGES


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a store could lose.

    Attributes:
        free: what no report or export rests on and no run holds, the oldest first.
        unfinished: builds that were stopped and that a run would go on in, the oldest first.
        held: what would be one of these if no living run held it.
    """

    free: list[Path]
    unfinished: list[Path]
    held: list[Path]

    @classmethod
    def of(cls, store: Store, *, unfinished: bool = False) -> Garbage:
        """Return the garbage of a store. To be called within `Store.cleaning`.

        Unless `unfinished` builds may go too, what they were begun with stays: a run goes on in them with that alone.
        """
        by_name = {artifact.name: artifact for artifact in store.artifacts()}
        needed: set[str] = set()
        wanted = [a for a in by_name.values() if a.manifest["stage"] in ("report", "export") and current(a)]
        begun = [] if unfinished else [d for path in store.partials() for d in (begun_with(path) or {}).values()]
        wanted += [artifact for artifact in by_name.values() if artifact.digest in begun]
        # Whatever a needed artifact was built from is needed too.
        while wanted:
            artifact = wanted.pop()
            needed.add(artifact.name)
            wanted += [by_name[n] for n in artifact.manifest["inputs"].values() if n in by_name and n not in needed]
        held = store.held()

        def in_use(path: Path) -> bool:
            return lock_of(path) in held or store.in_use(path)

        others = [artifact.path for name, artifact in by_name.items() if name not in needed]
        others += [path for path, _ in store.unreadable()]
        stopped = store.partials()
        return cls(
            free=_by_age([*(path for path in others if not in_use(path)), *store.leftovers()]),
            unfinished=_by_age(path for path in stopped if not in_use(path)),
            held=sorted(path for path in (*others, *stopped) if in_use(path)),
        )


def current(artifact: Artifact) -> bool:
    """Return whether today's code would still use the artifact: its stage has the version that built it."""
    stage = STAGES.get(artifact.manifest["stage"])
    return stage is not None and stage.version == artifact.manifest["payload"]["version"]


def age(path: Path) -> float:
    """Return the seconds since a directory of the store was written last."""
    return time.time() - path.lstat().st_mtime


def _by_age(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=age, reverse=True)

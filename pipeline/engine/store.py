"""Artifacts on disk. Each is one directory, which is complete exactly when its manifest is there.

    <root>/<stage>/<label>-<key, 16 digits>/            payload + manifest.json
    <root>/<stage>/<label>-<key, 16 digits>.partial/    being built, or left by a killed run to resume from
    <root>/.locks/                                      one file lock an artifact

The manifest is written last, and one rename commits the artifact. A hit is checked, not trusted. Its payload must be
the same, every file must be there with its recorded size, small files must have their recorded content, and every
input must be the one that it was built from. There is no other state that could disagree with the disk.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.engine import holds
from pipeline.engine.artifact import MANIFEST, Artifact, read_manifest
from pipeline.engine.disk import explain_disk_error
from pipeline.engine.holds import LOCKS
from pipeline.engine.integrity import SMALL, Hashes, Identity, flush, identify
from pipeline.engine.unfinished import INPUTS, clear_leftovers, input_digests
from pipeline.planning import keys
from stages.common.files import users_path, write_json
from stages.common.sealed import digest, sealed
from stages.errors import UserError

log = logging.getLogger("pipeline")

VARIABLE, DEFAULT = "PRUNE_RECOVER_ARTIFACTS", "artifacts"
"""The environment variable that names the store's directory, and its name without any; conf/runtime/auto.yaml too."""
PARTIAL = ".partial"
ASIDE = ".broken"
"""Where broken artifacts are set aside."""
REPRODUCED = ".reproduced"
"""Where artifacts are built a second time, to be compared and removed."""
SHORT = 16
"""Hex digits of the key in a directory's name; the manifest holds all 64."""
ARTIFACT = re.compile(rf"-[0-9a-f]{{{SHORT}}}\Z")
"""The end of an artifact's name. The label before it may be anything, so nothing else in a name means anything."""
UNFINISHED = re.compile(rf"-[0-9a-f]{{{SHORT}}}{re.escape(PARTIAL)}\Z")
REPLACED = re.compile(rf"-[0-9a-f]{{{SHORT}}}\.replaced-[0-9]+\Z")
"""An artifact that was moved aside, to put another into its place; the number is the process's."""


Differences = dict[str, tuple[Any, Any]]
"""The fields in which two payloads differ, by their dotted names: (ours, theirs)."""


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts under one root directory, with the manifests and the hashes of files that this process read.

    One run looks at every artifact many times. A file that nobody has written since is not read again.
    """

    root: Path
    hashes: Hashes = field(default_factory=Hashes, compare=False, repr=False)
    manifests: dict[Identity, dict[str, Any] | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def at(cls, root: str) -> Store:
        """Return the store at the directory that the user named, there or not.

        Raises:
            UserError: the name is empty.
        """
        if not root.strip():
            raise UserError(
                "the artifact directory has an empty name. Set runtime.artifact_root or the environment variable "
                f"{VARIABLE} to a directory, or leave both out: then it is {DEFAULT}."
            )
        return cls(users_path(root))

    def prepare(self) -> None:
        """Create the root and check that it can be written.

        Raises:
            UserError: the root can't be written.
        """
        probe = self.root / f".probe-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"\0")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the artifact directory {self.root} can't be written ({error.strerror}). "
                "Make room or mend its permissions, or name another: runtime.artifact_root=DIR."
            ) from error

    def directory(self, stage: str, label: str, key: str) -> Path:
        """Return the artifact's directory: the one that holds this key under any label, else a new one with `label`."""
        named = self.root / stage / f"{label}-{key[:SHORT]}"
        if named.exists():
            return named
        # The key identifies an artifact. A label only makes the name readable and may change between versions.
        return next(iter(sorted((self.root / stage).glob(f"*-{key[:SHORT]}"))), named)

    def partial(self, stage: str, label: str, key: str) -> Path:
        """Return the directory to build in: the one that a killed run left under any label, else a new one."""
        named = self.root / stage / f"{label}-{key[:SHORT]}{PARTIAL}"
        return next(iter(sorted((self.root / stage).glob(f"*-{key[:SHORT]}{PARTIAL}"))), named)

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Yield every complete artifact (of one stage) whose manifest can be read, ordered by stage and name."""
        for path in self._named(ARTIFACT, stage):
            artifact, _ = self._read(path)
            if artifact is not None:
                yield artifact

    def unreadable(self) -> list[tuple[Path, str]]:
        """Return each directory of an artifact whose manifest can't be used, and why."""
        found = [(path, self._read(path)[1]) for path in self._named(ARTIFACT)]
        return [(path, problem) for path, problem in found if problem]

    def partials(self) -> list[Path]:
        """Return the directories of unfinished builds."""
        return self._named(UNFINISHED)

    def leftovers(self) -> list[Path]:
        """Return what no run reads: artifacts that were replaced, set aside as broken, or built only to compare."""
        passing = [*self._named(REPLACED), *self._under(REPRODUCED)]
        return [*(path for path in passing if not self.in_use(path)), *self._under(ASIDE)]

    def _under(self, hidden: str) -> list[Path]:
        directory = self.root / hidden
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def set_aside(self, path: Path) -> Path:
        """Move the directory of a broken artifact out of the way, and return its new place."""
        (self.root / ASIDE).mkdir(exist_ok=True)
        place = self.root / ASIDE / f"{path.parent.name}-{path.name}-{time.time_ns()}"
        os.rename(path, place)
        return place

    def _named(self, ending: re.Pattern[str], stage: str = "*") -> list[Path]:
        """Return the directories of the store (or of one stage) whose names end so."""
        found = (path for path in self.root.glob(f"{stage}/*") if not path.parent.name.startswith("."))
        return sorted(path for path in found if ending.search(path.name) and path.is_dir())

    def find(self, key: str) -> Artifact:
        """Return the one artifact that `key` names: the first digits of its key, its directory or `stage/directory`.

        Raises:
            UserError: no artifact, or several, are so named.
        """
        wanted = key.rstrip("/").removeprefix(f"{self.root}/")
        found = [a for a in self.artifacts() if a.key.startswith(wanted) or wanted in (a.path.name, a.name)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(f"no artifact '{key}' in {self.root}. List them: python -m pipeline.inspect ls.")
        names = ", ".join(a.name for a in found)
        raise UserError(f"'{key}' could be {names}. Give more digits.")

    def nearest(self, payload: Mapping[str, Any], *, but: str = "") -> tuple[Artifact, Differences] | None:
        """Return the artifact of the same stage that differs in the fewest fields, with those fields (ours, its).

        `but` is the key of an artifact to leave out. None where the stage has no other artifact.
        """
        return min(self._differing(payload, but), key=_distance, default=None)

    def related(self, payload: Mapping[str, Any], label: str, most: int) -> tuple[Artifact, Differences] | None:
        """Return the nearest artifact of which at most `most` options are others, if it is one to compare with.

        It has the same model, or without a model among its inputs some input in common. An artifact that is built from
        nothing has to go by the same `label`.
        """
        own = payload["inputs"]
        return min(
            (
                (artifact, fields)
                for artifact, fields in self._differing(payload)
                if 0 < sum(not name.startswith("inputs.") for name in fields) <= most
                and (_kin(own, artifact.manifest["payload"]["inputs"]) if own else artifact.manifest["label"] == label)
            ),
            key=_distance,
            default=None,
        )

    def _differing(self, payload: Mapping[str, Any], but: str = "") -> Iterator[tuple[Artifact, Differences]]:
        """Yield the artifacts of the same stage, each with the fields in which it differs."""
        for artifact in self.artifacts(payload["stage"]):
            if artifact.key != but:
                yield artifact, keys.differences(payload, artifact.manifest["payload"])

    def check(
        self, path: Path, payload: Mapping[str, Any], inputs: Mapping[str, Artifact]
    ) -> tuple[Artifact | None, str]:
        """Return (the artifact, "") for a hit, or (None, why it must be built).

        `inputs` holds the upstream artifacts that are there now. An upstream artifact that was removed is not required.
        """
        if not path.exists():
            return None, ""
        artifact, problem = self._read(path)
        if artifact is None:
            return None, problem
        if artifact.manifest["payload"] != payload:
            return None, "its recorded configuration is another"
        problem = self.hashes.changed(path, artifact.manifest["files"], most=SMALL)
        if problem:
            return None, problem
        for name, upstream in inputs.items():
            if artifact.manifest["input_digests"].get(name) != upstream.digest:
                return None, f"its input '{name}' was rebuilt and differs"
        return artifact, ""

    def problem(self, path: Path) -> str:
        """Return what is wrong with the artifact at `path`, manifest or files; empty where nothing is."""
        artifact, problem = self._read(path)
        return problem if artifact is None else self.changed(artifact)

    def _read(self, path: Path) -> tuple[Artifact | None, str]:
        """Return (the artifact in `path`, ""), or (None, what is wrong with its manifest)."""
        file = path / MANIFEST
        try:
            identity = identify(file.stat())
        except OSError:
            return None, "its manifest is missing"
        if identity not in self.manifests:
            self.manifests[identity] = read_manifest(file)
        manifest = self.manifests[identity]
        return (None, "its manifest is damaged") if manifest is None else (Artifact(path, manifest), "")

    def changed(self, artifact: Artifact) -> str:
        """Return which file is not what was written, by its SHA-256; empty where none is."""
        return self.hashes.changed(artifact.path, artifact.manifest["files"])

    @contextmanager
    def lock(self, stage: str, key: str, *, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the artifact's lock. `waiting` is called once where another process holds it.

        Raises:
            UserError: the disk is full, or can't be written.
        """
        lock = holds.locked(self.root / LOCKS / f"{lock_name(stage, key)}.lock", waiting=waiting)
        with ExitStack() as held:
            try:
                held.enter_context(lock)
            except OSError as error:
                raise explain_disk_error(error, f"locking an artifact of {stage}") or error from error
            yield

    def in_use(self, path: Path) -> bool:
        """Return whether a process is building the artifact (or unfinished build) at `path` right now."""
        lock = self.root / LOCKS / f"{lock_of(path)}.lock"
        if not lock.exists():
            return False  # nobody has built it yet, and asking makes no file
        try:
            with FileLock(lock).acquire(timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def cleaning(self) -> Iterator[None]:
        """Keep runs from starting, and others from cleaning, until the block ends.

        Raises:
            UserError: the store can't be written.
        """
        waiting = lambda: log.info("%s is being cleaned by another process; waiting for it.", self.root)  # noqa: E731
        self.prepare()
        with holds.cleaning(self.root, waiting=waiting):
            yield

    def held(self) -> set[str]:
        """Return the names of the locks of what living runs hold. To be called within `cleaning`."""
        return holds.held(self.root)

    def delete(self, path: Path) -> None:
        """Remove a directory of the store. No reader finds half of it."""
        if path.parent.name != ASIDE:
            path = self.set_aside(path)
        shutil.rmtree(path)

    def forget_locks(self) -> None:
        """Remove the locks of artifacts that are gone. To be called within `cleaning`: no run may start meanwhile."""
        there = (*self._named(ARTIFACT), *self.partials(), *self._under(REPRODUCED))
        living = {lock_of(path) for path in there} | self.held()
        for path in (self.root / LOCKS).glob(f"*-{'[0-9a-f]' * SHORT}.lock"):
            if path.stem not in living:
                path.unlink(missing_ok=True)

    def commit(
        self,
        partial: Path,
        final: Path,
        *,
        label: str,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        summary: Mapping[str, Any],
        provenance: Mapping[str, Any],
        timing: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Write the manifest into `partial` and rename `partial` to `final`. An artifact already there is replaced.

        `timing` is the work of the stage and its seconds, for the plans of later runs.
        """
        clear_leftovers(partial)
        # A killed commit may have left a manifest. The record of the inputs stays until all is done: while it is there,
        # a commit that fails, on a full disk say, loses nothing of the work.
        files = self.hashes.describe(partial, but=(MANIFEST, INPUTS))
        manifest = {
            "stage": payload["stage"],
            "label": label,
            "key": digest(payload),
            "payload": payload,
            "inputs": {name: upstream.name for name, upstream in sorted(inputs.items())},
            "input_digests": input_digests(inputs),
            # Of names and contents alone: a rebuild with equal files leaves valid what was built from it.
            "digest": digest({name: file["sha256"] for name, file in files.items()}),
            "files": files,
            "summary": summary,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance,
            **({} if timing is None else {"timing": timing}),
        }
        manifest = sealed(manifest)
        # After a power cut a manifest must not stand beside files whose content never reached the disk.
        flush(path for path in (*(partial / name for name in files), *_directories(partial)) if not path.is_symlink())
        write_json(partial / MANIFEST, manifest)
        flush([partial / MANIFEST, partial])
        # A directory can't be renamed onto one that holds files, so the old artifact is moved aside first.
        old = final.with_name(f"{final.name}.replaced-{os.getpid()}")
        if final.exists():
            os.rename(final, old)
        os.rename(partial, final)
        flush([final.parent])
        (final / INPUTS).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        return Artifact(final, manifest)


def _distance(found: tuple[Artifact, Differences]) -> tuple[int, str]:
    """Return how far an artifact is; the name breaks ties, so that the file system's order does not decide."""
    return len(found[1]), found[0].name


def _kin(own: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Return whether two artifacts with these inputs are of one model, or else have an input in common."""
    return own["model"] == others.get("model") if "model" in own else bool(own.items() & others.items())


def lock_name(stage: str, key: str) -> str:
    """Return the name of an artifact's lock."""
    return f"{stage}-{key[:SHORT]}"


def lock_of(path: Path) -> str:
    """Return the name of the lock of the artifact, unfinished build or replaced artifact at `path`."""
    name = path.name if ARTIFACT.search(path.name) else path.name.rpartition(".")[0]
    return lock_name(path.parent.name, name[-SHORT:])


def _directories(directory: Path) -> list[Path]:
    """Return a directory and all those under it, the deepest first."""
    return [*sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True), directory]

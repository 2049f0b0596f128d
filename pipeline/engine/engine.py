"""The engine: it runs a plan, builds what the store lacks and checks what the store has. Builds are resumable.

    hit       complete, and built from exactly these inputs
    build     not in the store, or not to be trusted (the reason is given)
    resume    a killed build left its directory, and the stage goes on in it
    wait      another process is building it right now

A hit never runs the stages upstream of it. Before a build reads an artifact, every file of it is hashed. What is not
what was written is built again first.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.engine.artifact import Artifact
from pipeline.engine.disk import explain_disk_error
from pipeline.engine.estimates import timing
from pipeline.engine.holds import holding
from pipeline.engine.provenance import drift, provenance
from pipeline.engine.sharing import Threads
from pipeline.engine.store import Store, lock_name
from pipeline.engine.unfinished import begin, discard_if_empty, resumable
from pipeline.planning.graph import Graph, Node
from pipeline.planning.speed import machine_name
from stages.common.determinism import ordered_sums
from stages.common.machine import peak, peaks_of_workers, reset_peak_memory
from stages.common.units import GIB
from stages.decoders.work import Work
from stages.errors import UserError
from stages.stage import CHECKPOINT_SECONDS, Context

log = logging.getLogger("pipeline")

Observe = Callable[[Node], Callable[[dict[str, Any]], None]]
"""`observe(node)` returns the function that gets the points of that node's curve while the node is built."""
MISSING = "not in the store"
RESUMES = "a run was stopped in it"
BUILDING = "being built by another process"
SOUND = ("", MISSING, RESUMES, BUILDING)
"""The reasons of nodes that are not broken, and that nobody forced."""


@dataclass(frozen=True, slots=True)
class Status:
    """The fate of a node in this run, and the reason."""

    state: str
    why: str
    artifact: Artifact | None = None


@dataclass(frozen=True, slots=True)
class StageRun:
    """The record of a node in this run. It belongs to the run directory, never to an artifact.

    `status` is hit, built, resumed or "not needed". The last is an artifact that was removed and that nothing had to
    read.
    """

    name: str
    key: str
    status: str
    seconds: float
    peak_memory_bytes: int | None
    artifact: str
    peak_device_memory_bytes: int | None = None
    """The most bytes of tensors on one GPU: the fullest, whichever process held them; None where no stage used one."""
    peaks: Mapping[str, Any] = field(default_factory=dict)
    """The peak of each process by its name, where workers or several GPUs took part."""
    why: str = ""
    drift: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Engine:
    """One run over a store. It remembers which artifacts are checked or built, and what each cost."""

    def __init__(
        self,
        graph: Graph,
        store: Store,
        *,
        cache: Path,
        force: list[str],
        observe: Observe = lambda node: lambda point: None,
        threads: int | None = None,
        engine: str = "single",
        workers: int = 1,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        cards: tuple[str, ...] = (),
        deterministic: bool = False,
    ) -> None:
        """`force` names stages or roles that are built again, and everything that depends on them.

        `observe(node)` returns the function that gets the points of that node's curve while the node is built.
        `engine` and `workers` say how, and how many, processes share a stage; `cards` are those of one large model.
        `deterministic`: a GPU adds in a fixed order too.
        """
        self.graph, self.store, self.cache, self.observe = graph, store, cache, observe
        self.threads = Threads(threads)
        self.checkpoint_seconds, self.engine, self.workers = checkpoint_seconds, engine, workers
        self.cards, self.deterministic = cards, deterministic
        self.done: dict[str, Artifact] = {}
        self.runs: dict[str, StageRun] = {}
        self.forced = _forced(graph, force)
        self.damaged: dict[str, str] = {}
        """What is wrong with artifacts that only their hashes give away, by key."""
        self.works: Mapping[str, Work] = {}
        """The work of stages by key, as far as it is counted; kept with their time."""

    def status(self, node: Node) -> Status:
        """Return what running `node` would do. Nothing is changed."""
        path = self.store.directory(node.stage.name, node.label, node.key)
        if node.key in self.done:
            return Status("hit", "", self.done[node.key])
        if node.key in self.forced:
            return Status("build", "forced")
        if node.key in self.damaged:
            return Status("build", f"{path.name} can't be used: {self.damaged[node.key]}")
        # An input that was removed is left out: what was built from it stays valid.
        inputs = {name: found for name, up in node.inputs.items() if (found := self._present(up)) is not None}
        artifact, problem = self.store.check(path, node.payload, inputs)
        if artifact is not None:
            rebuilt = [name for name, up in node.inputs.items() if up.key in self.forced]
            return Status("build", f"input '{rebuilt[0]}' is forced") if rebuilt else Status("hit", "", artifact)
        if problem:
            return Status("build", f"{path.name} can't be used: {problem}")
        if self.store.in_use(path):
            return Status("wait", BUILDING)
        if self.store.partial(node.stage.name, node.label, node.key).exists():
            return Status("resume", RESUMES)
        return Status("build", MISSING)

    def due(self) -> list[Node]:
        """Return the nodes that `run` would build now, in their order. Nothing is changed."""
        statuses = {node.key: self.status(node) for node in self.graph}
        wanted: set[str] = set()

        def want(node: Node) -> None:
            if node.key not in wanted and statuses[node.key].state != "hit":
                wanted.add(node.key)
                for upstream in node.inputs.values():
                    want(upstream)

        broken = [node for node in self.graph if statuses[node.key].why not in SOUND]
        for node in (*broken, *self.graph.targets):
            want(node)
        return [node for node in self.graph if node.key in wanted]

    def run(self) -> None:
        """Bring every target into the store. Artifacts that are there but broken are rebuilt on the way."""
        # Broken and forced artifacts are built even where every target is a hit and would not read them.
        for node in self.graph:
            if self.status(node).why not in SOUND:
                self.ensure(node)
        for node in self.graph.targets:
            self.ensure(node)
        for node in self.graph:
            self._note(node)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep all artifacts of the graph, there or not yet, from being cleaned up until the block ends."""
        waiting = lambda: log.info("artifacts are being cleaned up in %s; waiting for it to end.", self.store.root)  # noqa: E731
        names = [lock_name(node.stage.name, node.key) for node in self.graph]
        with holding(self.store.root, names, waiting=waiting):
            yield

    def ensure(self, node: Node) -> Artifact:
        """Return the artifact of `node`. The node, and whatever it needs, is built where it is missing."""
        if node.key in self.done:
            return self.done[node.key]
        started = time.perf_counter()
        status = self.status(node)
        if status.artifact is not None:
            changed = drift(status.artifact.manifest)
            self._record(node, "hit", time.perf_counter() - started, None, status.artifact, drift=changed)
            return self._finish(node, status.artifact)
        inputs = self._whole_inputs(node)
        waiting = lambda: log.info("%s is being built by another process; waiting for it.", node.name)  # noqa: E731
        with self.store.lock(node.stage.name, node.key, waiting=waiting):
            if status.state == "wait":
                status = Status("resume", RESUMES)  # unless the other process has finished it
            artifact = self._built_meanwhile(node, inputs)
            if artifact is not None:
                self._record(node, "hit", 0.0, None, artifact, why="built by another process meanwhile")
                return self._finish(node, artifact)
            return self._finish(node, self._build(node, inputs, status))

    def artifacts(self) -> dict[str, Path]:
        """Return the directories of the graph's artifacts that are in the store, by role, needed in this run or not."""
        found = {role: self._present(node) for role, node in self.graph.roles.items()}
        return {role: artifact.path for role, artifact in found.items() if artifact is not None}

    def _whole_inputs(self, node: Node) -> dict[str, Artifact]:
        """Return the artifacts that a build of `node` reads, with every file as it was written.

        Raises:
            UserError: what was built again in this run is damaged again.
        """
        with ThreadPoolExecutor(1) as thread:
            while True:
                inputs = {name: self.ensure(upstream) for name, upstream in node.inputs.items()}
                hashing = thread.submit(self._changed, inputs)
                # Hashing a large model takes seconds, and so does loading the stage's code.
                node.stage.load()
                changed = hashing.result()
                if not changed:
                    return inputs
                for name, problem in changed.items():
                    self._distrust(node.inputs[name], problem)

    def _changed(self, inputs: Mapping[str, Artifact]) -> dict[str, str]:
        """Return the inputs that are not what was written, and what is wrong with each."""
        found = {name: self.store.changed(artifact) for name, artifact in inputs.items()}
        return {name: problem for name, problem in found.items() if problem}

    def _distrust(self, node: Node, problem: str) -> None:
        """Let `node` be built again, though its artifact looks whole."""
        artifact = self.done.pop(node.key)
        if node.key in self.damaged:
            raise UserError(
                f"{artifact.path} was built again and is damaged again: {problem}. The disk or the memory of this "
                "machine is failing. Check them, or move the store: runtime.artifact_root=DIR."
            )
        self.damaged[node.key] = problem

    def _built_meanwhile(self, node: Node, inputs: Mapping[str, Artifact]) -> Artifact | None:
        """Return the artifact that another process built while this one waited for the lock; None where it did not."""
        if node.key in self.forced:
            return None
        path = self.store.directory(node.stage.name, node.label, node.key)
        artifact, _ = self.store.check(path, node.payload, inputs)
        if artifact is not None and node.key in self.damaged and self.store.changed(artifact):
            return None
        return artifact

    def _build(self, node: Node, inputs: Mapping[str, Artifact], status: Status) -> Artifact:
        stage = node.stage
        partial = self.store.partial(stage.name, node.label, node.key)
        final = self.store.directory(stage.name, node.label, node.key)
        resumed = node.key not in self.forced and resumable(partial, inputs)
        log.info("%s %s%s", "resume" if resumed else "build ", node.name, f" ({status.why})" if status.why else "")
        # A process's peak memory never falls by itself. Each stage's peak is counted from here.
        reset_peak_memory()
        started = time.perf_counter()
        try:
            threads = self.threads.take(long=node.key in self.works, begun=partial if resumed else None)
            if not resumed:
                shutil.rmtree(partial, ignore_errors=True)
            begin(partial, inputs, threads)
            context = Context(
                output=partial,
                device=self.graph.device,
                cache=self.cache,
                locations=node.locations,
                checkpoint_seconds=self.checkpoint_seconds,
                workers=self.workers,
                engine=self.engine,
                cards=self.cards,
                # A processor adds in a fixed order anyway.
                deterministic=self.deterministic and self.graph.device != "cpu",
                log=self.observe(node),
            )
            directories = {name: artifact.path for name, artifact in inputs.items()}
            with ordered_sums(context.deterministic):
                summary = stage.load()(node.config, directories, context)
            _check_promises(node, partial)
            artifact = self.store.commit(
                partial,
                final,
                label=node.label,
                payload=node.payload,
                inputs=inputs,
                summary=summary,
                provenance=provenance(),
                timing=None if resumed else self._timing(node, threads, time.perf_counter() - started),
            )
        except Exception as error:
            # A directory without any file is nothing to resume, and would be shown as an unfinished build.
            if isinstance(error, UserError):
                discard_if_empty(partial)
            gone = next((path for path in (partial, *(one.path for one in inputs.values())) if not path.is_dir()), None)
            explained = explain_disk_error(error, f"building {node.name}")
            if gone is not None and not isinstance(error, UserError):
                explained = UserError(
                    f"{gone} was removed while {node.name} was built. Run the same command again: it builds what is "
                    "missing."
                )
            if explained is None:
                raise
            raise explained from error
        seconds = time.perf_counter() - started
        resident, on_device, peaks = _peaks()
        done, more = "resumed" if resumed else "built", {"why": status.why, "peak_device_memory_bytes": on_device}
        self._record(node, done, seconds, resident, artifact, **more, peaks=peaks)
        memory = f", peak {resident / GIB:.1f} GiB" if resident else ""
        memory += f" and {on_device / GIB:.1f} GiB on the {'fullest ' if peaks else ''}GPU" if on_device else ""
        log.info("built  %s in %.1f s%s", artifact.name, seconds, memory)
        return artifact

    def _timing(self, node: Node, threads: int | None, seconds: float) -> dict[str, Any] | None:
        """Return what is kept of a build's time, for later plans; None where its work is not counted."""
        work = self.works.get(node.key)
        return None if work is None else timing(work, machine_name(threads), seconds)

    def _note(self, node: Node) -> None:
        """Record a node that nothing asked for: a hit where its artifact is there, else "not needed"."""
        if node.key in self.runs:
            return
        artifact = self._present(node)
        if artifact is not None:
            self._record(node, "hit", 0.0, None, artifact, drift=drift(artifact.manifest))
        else:
            self.runs[node.key] = StageRun(self.graph.role_of(node), node.key, "not needed", 0.0, None, "")

    def _finish(self, node: Node, artifact: Artifact) -> Artifact:
        self.done[node.key] = artifact
        # A forced node is built once; whoever asks again in this run gets a hit.
        self.forced.discard(node.key)
        return artifact

    def _present(self, node: Node) -> Artifact | None:
        """Return the artifact of `node` if it is there and whole. Its inputs are not checked."""
        if node.key in self.done:
            return self.done[node.key]
        path = self.store.directory(node.stage.name, node.label, node.key)
        return self.store.check(path, node.payload, {})[0]

    def _record(
        self, node: Node, status: str, seconds: float, peak: int | None, artifact: Artifact, **more: Any
    ) -> None:
        role = self.graph.role_of(node)
        self.runs[node.key] = StageRun(role, node.key, status, round(seconds, 3), peak, artifact.name, **more)


def _forced(graph: Graph, names: list[str]) -> set[str]:
    """Return the keys of the named stages or roles, and of everything that depends on them."""
    known = set(graph.roles) | {node.stage.name for node in graph}
    forced: set[str] = set()
    for name in names:
        if name not in known:
            raise UserError(f"force=[{name}] names no stage of this plan. Known: {', '.join(sorted(known))}.")
        forced |= {n.key for role, n in graph.roles.items() if name in (role, n.stage.name)}
    # The graph lists inputs before the nodes that read them, so one pass reaches everything downstream.
    for node in graph:
        if any(upstream.key in forced for upstream in node.inputs.values()):
            forced.add(node.key)
    return forced


def _peaks() -> tuple[int | None, int | None, dict[str, Any]]:
    """Return the most resident bytes of this process, the most bytes on one GPU, and the peak of each process.

    The last is empty where neither workers nor several GPUs took part.
    """
    own, workers = peak(), peaks_of_workers()
    found = {"this process": own} | {f"worker {rank}": each for rank, each in workers.items()}
    fullest = max((bytes_ for each in found.values() for bytes_ in each.device_memory_bytes.values()), default=None)
    if not workers and len(own.device_memory_bytes) < 2:
        return own.memory_bytes, fullest, {}
    return own.memory_bytes, fullest, {name: asdict(each) for name, each in found.items()}


def _check_promises(node: Node, directory: Path) -> None:
    """Raise unless the stage wrote what it promises. In a promise "|" separates alternatives."""
    for promise in node.stage.outputs:
        if not any((directory / name).is_file() for name in promise.split("|")):
            raise RuntimeError(f"stage {node.stage.name} finished without writing {promise}")

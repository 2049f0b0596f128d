"""An artifact built again beside the first, and what differs between the two.

The second is built in `<root>/.reproduced/`, from the same inputs, and removed. Nothing of the store is replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.engine.artifact import Artifact
from pipeline.engine.holds import holding
from pipeline.engine.sharing import set_threads
from pipeline.engine.store import REPRODUCED, Store, lock_of
from pipeline.engine.typed import stage_and_config
from pipeline.engine.unfinished import clear_leftovers
from pipeline.planning.keys import flatten
from stages.common.checks import short
from stages.common.determinism import ordered_sums
from stages.common.files import read_json, read_jsonl
from stages.errors import UserError
from stages.stage import Context

MEASURED = frozenset(
    f"{name}{end}"
    for name in ("seconds", "prefill_seconds", "decode_seconds", "prefill_ratio", "decode_ratio", "tokens_per_second")
    for end in ("", "_range")
) | {"peak_memory_bytes", "libraries_bytes", "peak_device_memory_bytes"}
"""Fields of JSON files that hold measured time or memory, which no two builds share."""
MOST = 5
"""Fields of one file that are named as different."""


def reproduce(
    store: Store, artifact: Artifact, *, places: Mapping[str, Path], cache: Path, device: str, threads: int | None
) -> list[str]:
    """Return what differs between `artifact` and the same built again now, a line each; empty where nothing does.

    `places` are those of the user's own files that the artifact was built from, by name (`Context.locations`).

    Raises:
        UserError: an input is gone or was changed, or today's code can't build such an artifact.
    """
    stage, config = stage_and_config(artifact.manifest["payload"])
    inputs = _inputs(store, artifact)
    held = [lock_of(path) for path in (artifact.path, *inputs.values())]
    place = store.root / REPRODUCED / artifact.path.name
    nothing = lambda: None  # noqa: E731
    with holding(store.root, held, waiting=nothing), store.lock(REPRODUCED, artifact.key, waiting=nothing):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            if threads is not None:
                set_threads(threads)
            own = _Places(_source_of(artifact) | dict(places))
            context = Context(output=place, device=device, cache=cache, locations=own, deterministic=device != "cpu")
            with ordered_sums(context.deterministic):
                stage.load()(config, inputs, context)
            clear_leftovers(place)
            problem = store.changed(artifact)
            return [*filter(None, [problem]), *_differences(store, artifact, place)]
        finally:
            shutil.rmtree(place, ignore_errors=True)


class _Places(dict[str, Path]):
    """Places by name. A name that is missing is told to the user."""

    def __missing__(self, name: str) -> Path:
        raise UserError(f"it was built from files of yours, '{name}'. Say where they are: --at {name}=PATH.")


def _inputs(store: Store, artifact: Artifact) -> dict[str, Path]:
    """Return the directories of an artifact's inputs, each as it was when the artifact was built."""
    found = {}
    by_digest = {one.digest: one for one in store.artifacts()}
    for name, digest in artifact.manifest["input_digests"].items():
        upstream = by_digest.get(digest)
        problem = "it is not in the store" if upstream is None else store.changed(upstream)
        if upstream is None or problem:
            was = artifact.manifest["inputs"][name]
            raise UserError(
                f"the input '{name}' of {artifact.name} was {was}, and can't be used: {problem}. "
                "Run the command that built it again."
            )
        found[name] = upstream.path
    return found


def _source_of(artifact: Artifact) -> dict[str, Path]:
    """Return the place of the directory that a local model came from: its weights are links into it."""
    links = [path for path in artifact.path.glob("model/*") if path.is_symlink()]
    return {"model": links[0].resolve().parent} if links else {}


def _differences(store: Store, artifact: Artifact, place: Path) -> Iterator[str]:
    """Yield a line for each file that is not the same in `place`."""
    first, second = artifact.manifest["files"], store.hashes.describe(place)
    for name in sorted(first.keys() | second.keys()):
        if name not in second:
            yield f"{name} was not written again"
        elif name not in first:
            yield f"{name} is new"
        elif first[name]["sha256"] != second[name]["sha256"] and (told := _told(artifact.path / name, place / name)):
            yield f"{name} differs: {told}"


def _told(first: Path, second: Path) -> str:
    """Return in what two files differ; empty where only measured values do."""
    if first.suffix not in (".json", ".jsonl"):
        return _bytes_told(first, second)
    try:
        ours, theirs = _leaves(first), _leaves(second)
    except UserError as error:
        return str(error)
    fields = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    told = [f"{name} {short(ours.get(name))} → {short(theirs.get(name))}" for name in fields[:MOST]]
    more = f" and {len(fields) - MOST} more fields" if len(fields) > MOST else ""
    return "; ".join(told) + more


def _bytes_told(first: Path, second: Path) -> str:
    if not first.is_file():
        return "the first is missing"
    ours, theirs = first.stat().st_size, second.stat().st_size
    return f"{ours:,} bytes → {theirs:,} bytes" if ours != theirs else f"other content in {ours:,} bytes"


def _leaves(path: Path) -> dict[str, Any]:
    """Return the values of a JSON file by their dotted names, without those that are measured."""
    value = list(read_jsonl(path)) if path.suffix == ".jsonl" else read_json(path)
    return {name: leaf for name, leaf in flatten(_numbered(value)).items() if not MEASURED & set(name.split("."))}


def _numbered(value: Any) -> Any:
    """Return a JSON value with its lists as mappings from their places."""
    if isinstance(value, list):
        return {str(place): _numbered(item) for place, item in enumerate(value)}
    return {name: _numbered(item) for name, item in value.items()} if isinstance(value, dict) else value

"""`python -m pipeline.inspect ls | show KEY | why KEY | verify | reproduce KEY | gc`: the artifact store.

Only `reproduce` loads torch.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from pipeline.console.ending import status_of
from pipeline.console.lines import say
from pipeline.console.tables import DIGITS, describe_differences, size, table
from pipeline.engine.artifact import Artifact, named
from pipeline.engine.garbage import Garbage, age
from pipeline.engine.integrity import missing_or_resized
from pipeline.engine.provenance import drift
from pipeline.engine.store import DEFAULT, VARIABLE, Store, lock_of
from pipeline.planning.keys import flatten
from pipeline.planning.runtime import resolve_device
from stages.common.checks import short
from stages.common.files import users_path
from stages.errors import UserError

COMMAND = "python -m pipeline.inspect"
DAY = 24 * 60 * 60
DOWNLOADS = os.environ.get("PRUNE_RECOVER_CACHE", "~/.cache/prune-recover")
"""The default of runtime.cache, as conf/runtime/auto.yaml has it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.inspect", description="What is in the artifact store.")
    default = os.environ.get(VARIABLE, DEFAULT)
    parser.add_argument("--root", default=default, help=f"the store (runtime.artifact_root; here {default})")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="every artifact, newest last, and unfinished builds")
    for name, text in (
        ("show", "one artifact in full"),
        ("why", "what sets an artifact apart from the most similar one"),
    ):
        commands.add_parser(name, help=text).add_argument("key", help="the key's first digits, or the directory's name")
    verify = commands.add_parser("verify", help="check the SHA-256 of every file")
    verify.add_argument(
        "--repair", action="store_true", help="set broken artifacts aside, so that the next run builds them again"
    )
    again = commands.add_parser("reproduce", help="build an artifact again beside the first, and compare")
    again.add_argument("key", help="the key's first digits, or the directory's name")
    again.add_argument("--at", type=_place, action="append", default=[], metavar="NAME=PATH", help="a file of yours")
    again.add_argument("--threads", type=int, help="number of threads, as the run had it (runtime.threads)")
    again.add_argument("--device", default="auto", help="cpu or cuda, as the run had it; here auto")
    again.add_argument("--cache", default=DOWNLOADS, help="the downloads (runtime.cache)")
    collect = commands.add_parser("gc", help="what no report needs and no run holds; a dry run unless --delete")
    collect.add_argument("--delete", action="store_true", help="delete it")
    collect.add_argument("--unfinished", action="store_true", help="with the builds that a run would go on from")
    collect.add_argument("--older-than", type=_number, default=0.0, metavar="DAYS", help="only what is older")
    collect.add_argument(
        "--keep-bytes", type=_number, metavar="BYTES", help="only what the store has above BYTES, the oldest first"
    )
    given = parser.parse_args(arguments)
    return status_of(lambda: _asked(given))


def _asked(given: argparse.Namespace) -> int:
    store = Store.at(given.root)
    if not store.root.is_dir():
        raise UserError(f"there is no store at {store.root}. Run a pipeline first, or name one: --root DIR.")
    if given.command == "ls":
        return ls(store)
    if given.command == "show":
        return show(store.find(given.key))
    if given.command == "why":
        return why(store, store.find(given.key))
    if given.command == "verify":
        return verify_all(store, repair=given.repair)
    if given.command == "reproduce":
        return compare_again(store, store.find(given.key), given)
    return collect_garbage(store, given)


def ls(store: Store) -> int:
    """Print every artifact and unfinished build."""
    rows = [("artifact", "key", "size", "created", "")]
    for artifact in sorted(store.artifacts(), key=lambda a: str(a.manifest["created"])):
        problem = missing_or_resized(artifact.path, artifact.manifest["files"])
        rows.append(
            (artifact.name, artifact.key[:DIGITS], size(weight(artifact)), artifact.manifest["created"], problem)
        )
    for path in store.partials():
        rows.append((named(path), "", size(bytes_under(path)), "", "unfinished"))
    say(table(rows) if len(rows) > 1 else f"{store.root} is empty.")
    return 0


def show(artifact: Artifact) -> int:
    """Print one artifact: configuration, inputs, summary, files and where it came from."""
    manifest = artifact.manifest
    say(f"{artifact.name}\nkey      {artifact.key}\npath     {artifact.path}\ncreated  {manifest['created']}")
    for title, values in (
        ("configuration", flatten(manifest["payload"]["config"])),
        ("inputs", manifest["inputs"]),
        ("summary", flatten(manifest["summary"])),
        ("files", {name: size(file["bytes"]) for name, file in manifest["files"].items()}),
        ("built by", {"commit": manifest["provenance"]["commit"], **manifest["provenance"]["versions"]}),
        ("drift since", {name: f"{then} → {now}" for name, (then, now) in drift(manifest).items()}),
    ):
        if values:
            say(f"\n{title}")
            say(table([(f"  {name}", short(value, 100)) for name, value in values.items()]))
    return 0


def why(store: Store, artifact: Artifact) -> int:
    """Print the fields in which an artifact differs from the most similar one of its stage."""
    found = store.nearest(artifact.manifest["payload"], but=artifact.key)
    if found is None:
        say(f"{artifact.name} is the only artifact of its stage.")
        return 0
    other, fields = found
    say(f"{artifact.name} is another artifact than {other.name} because of: {describe_differences(fields, most=50)}.")
    for name in (field.removeprefix("inputs.") for field in fields if field.startswith("inputs.")):
        theirs, ours = (one.manifest["inputs"].get(name, "none") for one in (other, artifact))
        say(f"  input {name}: {theirs} → {ours}")
    return 0


def verify_all(store: Store, *, repair: bool) -> int:
    """Check every manifest and every file's SHA-256. Return 1 where an artifact is broken, else 0.

    With `repair`, what is broken is set aside, unless a run holds it.
    """
    problems = [(artifact.path, store.changed(artifact)) for artifact in store.artifacts()] + store.unreadable()
    for path, problem in sorted(problems):
        say(f"{'BROKEN' if problem else 'ok    '}  {named(path)}{'  ' + problem if problem else ''}")
    broken = [path for path, problem in problems if problem]
    if not broken:
        return 0
    if not repair:
        say(f"{len(broken)} broken. Set aside, so that the next run builds again: {COMMAND} verify --repair")
        return 1
    with store.cleaning():
        held = store.held()
        for path in broken:
            if lock_of(path) in held or store.in_use(path):
                say(f"in use  {named(path)}")
            elif not path.exists() or not store.problem(path):
                say(f"ok      {named(path)}  built again meanwhile")
            else:
                say(f"moved   {named(path)} to {store.set_aside(path)}")
    say(f"The next run builds them again. Delete what was set aside: {COMMAND} gc --delete")
    return 1


def compare_again(store: Store, artifact: Artifact, given: argparse.Namespace) -> int:
    """Build an artifact again beside the first and print what differs. Return 1 where something does, else 0."""
    from pipeline.engine.reproduction import reproduce  # with every stage's options

    differences = reproduce(
        store,
        artifact,
        places=dict(given.at),
        cache=users_path(given.cache),
        device=resolve_device(given.device),
        threads=given.threads,
    )
    if not differences:
        say(f"{artifact.name} was built again with the same content.")
        return 0
    for line in differences:
        say(line)
    changes = ", ".join(f"{name} {then} → {now}" for name, (then, now) in drift(artifact.manifest).items())
    if changes:
        say(f"Built by other code than today's: {changes}.")
    say("Processor, torch and the number of threads (--threads) decide rounding: docs/reproducibility.md.")
    return 1


def collect_garbage(store: Store, given: argparse.Namespace) -> int:
    """Print what can go of a store, and delete it where that was asked for.

    A build that was stopped may hold hours of training. It stays unless `given.unfinished` is set.
    """
    with store.cleaning():
        garbage = Garbage.of(store, unfinished=given.unfinished)
        for path in garbage.held:
            say(f"in use  {named(path)}")
        candidates = garbage.free
        if given.unfinished:
            candidates = sorted([*candidates, *garbage.unfinished], key=age, reverse=True)
        else:
            for path in garbage.unfinished:
                say(f"kept  {named(path)}  {size(bytes_under(path))}  unfinished; --unfinished takes it")
        excess = math.inf if given.keep_bytes is None else bytes_under(store.root) - given.keep_bytes
        freed = 0
        for path in candidates:
            if age(path) < given.older_than * DAY or freed >= excess:
                continue
            bytes_ = bytes_under(path)
            freed += bytes_
            say(f"{'deleted' if given.delete else 'would delete'}  {named(path)}  {size(bytes_)}")
            if given.delete:
                store.delete(path)
        if given.delete:
            store.forget_locks()
    if not freed:
        say("nothing to collect.")
    elif given.delete:
        say(f"{size(freed)} freed.")
    else:
        say(f"This was a dry run: {size(freed)} can be freed. Delete with: {COMMAND} gc --delete")
    return 0


def weight(artifact: Artifact) -> int:
    """Return the bytes of the artifact's files."""
    return sum(int(file["bytes"]) for file in artifact.manifest["files"].values())


def _number(text: str) -> float:
    """Return a number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, and is {text!r}")
    return number


def _place(text: str) -> tuple[str, Path]:
    """Return the name and the path of NAME=PATH."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, and is {text!r}")
    return name, users_path(path)


def bytes_under(path: Path) -> int:
    """Return the bytes of the files under `path`. Links are not followed."""
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    raise SystemExit(main())

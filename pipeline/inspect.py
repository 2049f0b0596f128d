"""`python -m pipeline.inspect ls | show KEY | why KEY | verify | gc`: the artifact store, without loading torch."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from pipeline.console.tables import DIGITS, describe_differences, short, size, table
from pipeline.engine.provenance import drift
from pipeline.engine.store import Artifact, Store, damaged, missing_or_resized
from pipeline.planning.keys import flatten
from stages.errors import UserError
from stages.registry import STAGES


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.inspect", description="What is in the artifact store.")
    # The same default as conf/runtime/auto.yaml has.
    default = os.environ.get("PRUNE_RECOVER_ARTIFACTS", "artifacts")
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
        "--discard", action="store_true", help="delete broken artifacts, so that the next run rebuilds them"
    )
    collect = commands.add_parser("gc", help="what no report needs; a dry run unless --delete")
    collect.add_argument("--delete", action="store_true", help="delete it")
    collect.add_argument("--unfinished", action="store_true", help="with the builds that a run would go on from")
    given = parser.parse_args(arguments)
    store = Store(Path(given.root).expanduser().resolve())
    try:
        if not store.root.is_dir():
            raise UserError(f"there is no store at {store.root}. Run a pipeline first, or name one: --root DIR.")
        if given.command == "ls":
            return ls(store)
        if given.command == "show":
            return show(store.find(given.key))
        if given.command == "why":
            return why(store, store.find(given.key))
        if given.command == "verify":
            return verify_all(store, discard=given.discard)
        return garbage(store, delete=given.delete, unfinished=given.unfinished)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def ls(store: Store) -> int:
    """Print every artifact and unfinished build."""
    rows = [("artifact", "key", "size", "created", "")]
    for artifact in sorted(store.artifacts(), key=lambda a: str(a.manifest["created"])):
        problem = missing_or_resized(artifact)
        rows.append(
            (artifact.name, artifact.key[:DIGITS], size(weight(artifact)), artifact.manifest["created"], problem)
        )
    for path in store.partials():
        rows.append((f"{path.parent.name}/{path.name}", "", size(bytes_under(path)), "", "unfinished"))
    print(table(rows) if len(rows) > 1 else f"{store.root} is empty.")
    return 0


def show(artifact: Artifact) -> int:
    """Print one artifact: configuration, inputs, summary, files and where it came from."""
    manifest = artifact.manifest
    print(f"{artifact.name}\nkey      {artifact.key}\npath     {artifact.path}\ncreated  {manifest['created']}")
    for title, values in (
        ("configuration", flatten(manifest["payload"]["config"])),
        ("inputs", manifest["inputs"]),
        ("summary", flatten(manifest["summary"])),
        ("files", {name: size(file["bytes"]) for name, file in manifest["files"].items()}),
        ("built by", {"commit": manifest["provenance"]["commit"], **manifest["provenance"]["versions"]}),
        ("drift since", {name: f"{then} → {now}" for name, (then, now) in drift(manifest).items()}),
    ):
        if values:
            print(f"\n{title}")
            print(table([(f"  {name}", short(value, 100)) for name, value in values.items()]))
    return 0


def why(store: Store, artifact: Artifact) -> int:
    """Print the fields in which an artifact differs from the most similar one of its stage."""
    found = store.nearest(artifact.manifest["payload"], but=artifact.key)
    if found is None:
        print(f"{artifact.name} is the only artifact of its stage.")
        return 0
    other, fields = found
    print(f"{artifact.name} is another artifact than {other.name} because of: {describe_differences(fields, most=50)}.")
    for name in (field.removeprefix("inputs.") for field in fields if field.startswith("inputs.")):
        theirs, ours = (one.manifest["inputs"].get(name, "none") for one in (other, artifact))
        print(f"  input {name}: {theirs} → {ours}")
    return 0


def verify_all(store: Store, *, discard: bool) -> int:
    """Check every file's SHA-256. Return 1 where an artifact is broken, else 0."""
    broken = 0
    for artifact in list(store.artifacts()):
        problem = damaged(artifact)
        broken += bool(problem)
        print(f"{'BROKEN' if problem else 'ok    '}  {artifact.name}{'  ' + problem if problem else ''}")
        if problem and discard:
            shutil.rmtree(artifact.path)
    if broken and not discard:
        print(f"{broken} broken. Delete and let the next run rebuild: python -m pipeline.inspect verify --discard")
    return 1 if broken else 0


def garbage(store: Store, *, delete: bool, unfinished: bool) -> int:
    """Print the artifacts that no current report or export rests on. With `delete`, remove them.

    A build that was stopped may hold hours of training. It stays unless `unfinished` is set.
    """
    # A run that was killed while it replaced an artifact left the old one under such a name.
    paths = list(store.root.glob("*/*.replaced-*"))
    for path in store.partials():
        if unfinished:
            paths.append(path)
        else:
            print(f"kept  {path.parent.name}/{path.name}  {size(bytes_under(path))}  unfinished; --unfinished takes it")
    needed: set[str] = set()
    by_name = {artifact.name: artifact for artifact in store.artifacts()}
    reports = [a for a in by_name.values() if a.manifest["stage"] in ("report", "export") and current(a)]
    # Whatever a needed artifact was built from is needed too.
    while reports:
        artifact = reports.pop()
        needed.add(artifact.name)
        reports += [by_name[n] for n in artifact.manifest["inputs"].values() if n in by_name and n not in needed]
    paths += [artifact.path for name, artifact in by_name.items() if name not in needed]
    if not paths:
        print("nothing to collect: every artifact belongs to a report or an export.")
        return 0
    for path in paths:
        if store.in_use(path):
            print(f"in use  {path.parent.name}/{path.name}")
            continue
        print(f"{'deleted' if delete else 'would delete'}  {path.parent.name}/{path.name}  {size(bytes_under(path))}")
        if delete:
            shutil.rmtree(path)
    if not delete:
        print("This was a dry run. Delete with: python -m pipeline.inspect gc --delete")
    return 0


def current(artifact: Artifact) -> bool:
    """Return whether today's code would still use the artifact: its stage has the version that built it."""
    stage = STAGES.get(artifact.manifest["stage"])
    return stage is not None and stage.version == artifact.manifest["payload"]["version"]


def weight(artifact: Artifact) -> int:
    """Return the bytes of the artifact's files."""
    return sum(int(file["bytes"]) for file in artifact.manifest["files"].values())


def bytes_under(path: Path) -> int:
    """Return the bytes of the files under `path`. Links are not followed."""
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    raise SystemExit(main())

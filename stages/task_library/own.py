"""Tasks of the user's own, by path: a file of questions, or a YAML definition in lm-eval's form.

A plan takes their digest, so that a key holds what they say and not where they are. No torch, no lm-eval here.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.common.files import sha256_of
from stages.errors import UserError
from stages.fetch.datasets import LOADERS
from stages.task_library.names import expand
from stages.task_library.questions import question_definition, read_questions
from stages.task_library.yaml_definition import (
    Definition,
    files_of,
    functions,
    lm_eval_tasks,
    python_files,
    read_definition,
)

QUESTIONS = (".jsonl", ".json")
YAML = (".yaml", ".yml")


def is_path(asked: str) -> bool:
    """Return whether `asked` is a file of the user's own, not a name."""
    return Path(asked).suffix in (*QUESTIONS, *YAML)


def kind_of(path: Path) -> str:
    """Return "questions" or "yaml"."""
    return "questions" if path.suffix in QUESTIONS else "yaml"


def own_leaves(name: str, path: Path, cache: Path) -> dict[str, Definition]:
    """Return the definition of each task in the file `path`, which is asked for as `name`.

    Raises:
        UserError: the file can't be read, or defines neither a task nor a group.
    """
    if kind_of(path) == "questions":
        return {name: question_definition(name)}
    read = read_definition(path)
    if "group" not in read and not isinstance(read.get("task"), str):
        raise UserError(f"{path} defines nothing: it needs `task: NAME`, or `group: NAME` with its tasks.")
    return expand(name, read, cache)


def own_digest(name: str, path: Path, cache: Path) -> str:
    """Return the SHA-256 of everything that decides the task in the file `path`.

    That is the file's content. For a definition it is also the files it includes, the Python files of the folders that
    its functions are in, and local data files.

    Raises:
        UserError: the file can't be read, or its rows are not questions.
    """
    if kind_of(path) == "questions":
        read_questions(path)
        return sha256_of(path)
    definitions = own_leaves(name, path, cache).values()
    lines = [f"{sha256_of(file)}  {place}\n" for place, file in _needed(path, definitions)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _needed(path: Path, definitions: Any) -> Iterator[tuple[str, Path]]:
    """Yield every file that decides what the definition in `path` asks, under a name without the folders above it."""
    for file in files_of(path):
        yield f"definition/{file.name}", file
    for definition in definitions:
        for folder in sorted({function.folder for function in functions(definition) if function.file.is_file()}):
            if not folder.is_relative_to(lm_eval_tasks()):
                yield from ((f"code/{file.relative_to(folder).as_posix()}", file) for file in python_files(folder))
        for split, files in (local_files(definition, path) or {}).items():
            yield from ((f"data/{split}/{Path(file).name}", Path(file)) for file in files)


def local_files(definition: Definition, path: Path) -> dict[str, list[str]] | None:
    """Return the files on this machine that hold each split of the rows; None where the rows come from elsewhere.

    A relative name is looked up in the working directory, as in lm-eval, then beside the definition `path`.

    Raises:
        UserError: a file is missing, or the rows are named in a way that no digest can pin.
    """
    dataset = str(definition.get("dataset_path") or "")
    if dataset not in LOADERS:
        if not dataset or Path(dataset).exists() or dataset.startswith((".", "/", "~")):
            raise UserError(
                f"{path}: dataset_path is '{dataset}'. Name a data set of the hub (OWNER/NAME), or for files of your "
                "own `dataset_path: json` (or csv, text, parquet, arrow) with dataset_kwargs.data_files."
            )
        return None
    given = (definition.get("dataset_kwargs") or {}).get("data_files")
    if not given:
        raise UserError(f"{path}: dataset_path is '{dataset}' and dataset_kwargs.data_files names no files.")
    by_split: Mapping[str, Any] = given if isinstance(given, dict) else {"train": given}
    return {
        str(split): [found for name in (names if isinstance(names, list) else [names]) for found in _found(name, path)]
        for split, names in by_split.items()
    }


def _found(name: str, path: Path) -> list[str]:
    if "://" in name:
        raise UserError(f"{path}: {name} is not a file of this machine. Download it and name the copy.")
    for place in (Path(), path.parent):
        found = sorted(glob.glob(str((place / Path(name).expanduser()).resolve())))
        if found:
            return found
    raise UserError(f"{path}: there is no file '{name}', neither in the working directory nor beside the definition.")

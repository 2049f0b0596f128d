"""A check of the command line before Hydra's, which names the nearest option for one that does not exist.

Hydra refuses most unknown names without a near match, and takes `+ration=0.5` for a wish to add a field.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import resources
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.schema.config import Config, register
from stages.common.checks import short
from stages.common.choices import nearest
from stages.errors import UserError
from stages.prune.config import RENAMED

WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "names"),
}
"""Types in a user's words: one value, and several."""


MOST = 10**18
"""The largest whole number of an option. It is less than 64 bits hold."""


@dataclass(frozen=True, slots=True)
class Word:
    """An override that sets an option, or chooses one for a group.

    Attributes:
        text: the override as it was written.
        name: the option or the group: "recover.tune", "data".
        is_group: whether it chooses an option for a group.
    """

    text: str
    name: str
    is_group: bool

    @property
    def path(self) -> tuple[str, ...]:
        """The place in the configuration."""
        return tuple(self.name.split("."))


@cache
def groups() -> dict[str, list[str]]:
    """Return {group: its options}, read from the files in `conf`."""
    found = {}
    for directory in resources.files("conf").iterdir():
        if directory.is_dir() and not directory.name.startswith("_"):
            names = sorted(file.name for file in directory.iterdir())
            found[directory.name] = [name.removesuffix(".yaml") for name in names if name.endswith(".yaml")]
    return found


def asked_for_help(arguments: list[str]) -> list[str] | None:
    """Return the overrides among `arguments` where they ask for the help of this program, else None."""
    parsed = get_args_parser().parse_args(arguments)
    return list(parsed.overrides) if parsed.help else None


def check_arguments(arguments: list[str]) -> None:
    """Check the overrides among the command line's `arguments` (without the program's name).

    Raises:
        UserError: an override that can't be parsed, an unknown group option, an unknown key, a value of another type,
            or an empty mapping that would change nothing.
    """
    # Hydra's own parser, so that flags are told from overrides as Hydra tells them.
    parsed = get_args_parser().parse_args(arguments)
    if parsed.hydra_help or parsed.shell_completion:
        return
    try:
        overrides = OverridesParser.create().parse_overrides(parsed.overrides)
    except HydraException as error:
        raise UserError(f"the command line can't be read: {error}. Overrides look like ratio=0.5.") from None
    known, (choices, others) = groups(), _sorted(overrides)
    for override in choices:
        _check_choice(override, known[override.key_or_group])
    # The keys that exist depend on the chosen options: each prune method, for one, has fields of its own.
    config = _composed(_chosen(choices))
    _check_keys(others, config, known)
    _check_values(others, config)


def check_single(overrides: list[str]) -> None:
    """Raise a `UserError` where an override is a sweep, which means several runs."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} is a sweep: compose or run each of its values by itself.")


def set_words(words: Sequence[str]) -> list[Word]:
    """Return the overrides among `words` that set an option or choose one of a group, the last one of each name."""
    choices, others = _sorted(OverridesParser.create().parse_overrides(list(words)))
    # An override with a package is of a group too, and puts it where a reader of names would not look.
    plain = [o for o in others if o.package is None and not o.is_delete()]
    found = [Word(o.input_line or "", o.key_or_group, o in choices) for o in (*choices, *plain)]
    return list({word.name: word for word in found}.values())


def chosen(words: Sequence[str]) -> Config:
    """Return the configuration in which only the options of groups are chosen as in `words`, and none is set."""
    choices, _ = _sorted(OverridesParser.create().parse_overrides(list(words)))
    config = OmegaConf.to_object(_composed(_chosen(choices)))
    assert isinstance(config, Config)
    return config


def _sorted(overrides: list[Override]) -> tuple[list[Override], list[Override]]:
    """Return the overrides that choose an option of a group, and the others. Hydra's own are left out."""
    ours = [o for o in overrides if not o.key_or_group.startswith(("hydra.", "hydra/"))]
    choices = [o for o in ours if o.key_or_group in groups() and isinstance(_first(o), (str, type(None)))]
    return choices, [o for o in ours if o not in choices]


def _chosen(choices: list[Override]) -> tuple[str, ...]:
    """Return the chosen options as words. Of a sweep over options the first one is taken."""
    return tuple(f"{o.key_or_group}={_first(o)}" for o in choices if _first(o) is not None)


@cache
def _composed(chosen: tuple[str, ...]) -> DictConfig:
    """Return the configuration with the chosen options alone, once a process: composing takes most of a second."""
    register()
    try:
        # Inside of a job Hydra has been started, and starts only once.
        started = GlobalHydra.instance().is_initialized()
        with nullcontext() if started else initialize_config_module("conf", version_base="1.3"):
            return compose("config", overrides=list(chosen))
    except HydraException as error:
        raise UserError(f"{error} {error.__cause__ or ''}".strip()) from None


def _values(override: Override) -> list[Any]:
    """Return the values that an override takes: one, or several for a sweep over choices."""
    if override.is_choice_sweep():
        return list(override.sweep_iterator(transformer=lambda value: value))
    return [override.value()]


def _first(override: Override) -> Any:
    values = _values(override)
    return values[0] if values else None


def _check_choice(override: Override, options: list[str]) -> None:
    group = override.key_or_group
    for value in _values(override):
        if value not in options:
            shown = "null" if value is None else str(value)
            close = nearest(shown, options) or "."
            raise UserError(f"{group}={shown}: unknown option{close} Options: {', '.join(options)}.")


def _check_keys(overrides: list[Override], config: DictConfig, known_groups: dict[str, list[str]]) -> None:
    for override in overrides:
        key = override.key_or_group
        if key in RENAMED:
            raise UserError(f"{key} has another name now: {RENAMED[key]}.")
        # A group is a name of its own even where it leaves no key in the configuration, as experiment does.
        top = sorted({str(name) for name in config} | set(known_groups))
        node: Any = config
        walked: list[str] = []
        for part in key.replace("/", ".").split("."):
            if not isinstance(node, DictConfig) or _is_open(node):
                break
            names = [str(name) for name in node] if walked else top
            if part not in names:
                raise UserError(_unknown(key, walked, part, names, config))
            walked.append(part)
            node = OmegaConf.select(config, ".".join(walked), throw_on_missing=False)


def _check_values(overrides: list[Override], config: DictConfig) -> None:
    """Raise a `UserError` for a value of another type than the schema's, in plainer words than Hydra has."""
    tried = copy.deepcopy(config)
    for override in overrides:
        # A part that a package moves, or that is taken out, has no value here; a range holds numbers alone.
        if override.package is not None or override.is_delete() or override.is_range_sweep():
            continue
        key = override.key_or_group.replace("/", ".")
        for value in _values(override):
            before = OmegaConf.select(config, key, throw_on_missing=False)
            if value == {} and isinstance(before, DictConfig) and before:
                raise UserError(
                    f"{key}={{}} changes nothing, because a mapping is merged with what is there: "
                    f"{', '.join(map(str, before))}. Take an entry out with '~{key}.NAME'."
                )
            _check_numbers(key, value)
            try:
                OmegaConf.update(tried, key, value, force_add=True)
            except OmegaConfBaseException as error:
                wanted = _wanted(config, key) or str(error).splitlines()[0].rstrip(".")
                shown = "null" if value is None else repr(value)
                raise UserError(f"{key} must be {wanted}, and is {shown}.") from None


def _check_numbers(key: str, value: Any) -> None:
    """Raise a `UserError` for a number in `value` that no option can have: infinite, none at all, beyond 64 bits."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(key, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, and is {value}.")
    elif isinstance(value, int) and abs(value) > MOST:
        raise UserError(f"{key} must be a whole number from -{MOST:.0e} to {MOST:.0e}, and is {short(repr(value))}.")


def _wanted(config: DictConfig, key: str) -> str:
    """Return what the schema wants of a value in words; empty where that has no short ones."""
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    node = holder._get_node(name) if isinstance(holder, DictConfig) else None
    if isinstance(node, ListConfig):
        element = WORDS.get(node._metadata.element_type, ("", "values"))[1]
        return f"a list of {element}, as [ONE,TWO]{' or null' if node._metadata.optional else ''}"
    if not isinstance(node, Node):
        return ""
    kind, null = node._metadata.ref_type, " or null" if node._metadata.optional else ""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}{null}"
    if isinstance(node, DictConfig):
        return f"a mapping, as {{NAME: VALUE}}{null}"
    return f"{WORDS[kind][0]}{null}" if kind in WORDS else ""


def _is_open(node: DictConfig) -> bool:
    """Return whether `node` is a mapping that takes any key, not one with a schema."""
    return OmegaConf.get_type(node) is dict


def _unknown(key: str, walked: list[str], part: str, names: list[str], config: DictConfig) -> str:
    where = f" in {'.'.join(walked)}" if walked else ""
    inside = {str(name): group for name, group in config.items() if isinstance(group, DictConfig)}
    elsewhere = [f"{name}.{part}" for name, group in inside.items() if part in group]
    if elsewhere and not walked:
        return f"{key}: there is no '{part}' at the top, did you mean {elsewhere[0]}=?"
    return f"{key}: there is no '{part}'{where}{nearest(part, names) or '.'} Known{where}: {', '.join(sorted(names))}."

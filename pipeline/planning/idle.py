"""Options that a user set and that decide nothing, as a plan tells them: a line for each reason. No torch here.

Two ways lead to such a line:

* **By the keys**, without a declaration. Other values of the option are tried, and where every one of them gives the
  plan the same keys, the option decides nothing. So an option that is taken out of the keys where it is not read
  (`decisive`, `settled`, `for_scores`) has its line already.
* **By name**, where an option is in a key although nothing reads it, or is in no key at all: `unread` of the stage's
  `plan.py`, and of `runtime.py` here, give its name and the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from pipeline.planning import runtime
from pipeline.planning.build import build_graph
from pipeline.planning.data import has_prompts
from pipeline.planning.graph import Graph
from pipeline.schema.config import Config
from pipeline.schema.documented import meaning
from pipeline.schema.overrides import Word, chosen, set_words
from stages.errors import UserError
from stages.prune import plan as prune_plan
from stages.recover import plan as recover_plan
from stages.recover.config import RecoverStageConfig

UNKEYED = ("model", "runtime", "tracker", "action", "force")
"""Groups and options that are never tried. A model is always read; the others enter no key, whatever they do."""


def idle(config: Config, graph: Graph, words: Sequence[str]) -> list[str]:
    """Return the options that decide nothing in the plan `graph` of `config`, in a line for each reason.

    Only what the user set is looked at: `words` are the overrides of the command line.
    """
    given = set_words(words)
    if not given:
        return []
    config, start, named = _pinned(config, graph), chosen(words), dict(_unread(config, graph))
    keys = _Keys()
    found: dict[str, list[str]] = {}
    for word in given:
        reason = next((why for name, why in named.items() if f"{word.name}.".startswith(f"{name}.")), "")
        if reason and not word.is_group and _at(config, word.path) != _at(start, word.path):
            found.setdefault(reason, []).append(word.text)
        elif _decides_nothing(config, word, start, keys):
            found.setdefault(_cause(config, word, given, start, keys), []).append(word.text)
    return [f"without effect: {', '.join(options)} ({reason})" for reason, options in found.items()]


def _unread(config: Config, graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield the options that are read by nothing though no key tells, with the reason."""
    yield from runtime.unread(config.runtime, graph).items()
    if config.export.format != "decilm" and config.prune.shapes != "served":
        yield "prune.serve", "neither prune.shapes=served nor export=decilm asks what a server reads"
    if graph.pruning is not None:
        yield from prune_plan.unread(graph.pruning).items()
    recover = graph.roles.get("recover")
    if recover is not None and isinstance(recover.config, RecoverStageConfig):
        prompts = has_prompts(recover.inputs["data"])
        yield from recover_plan.unread(recover.config.recover, prompts=prompts).items()


def _decides_nothing(config: Config, word: Word, start: Config, keys_of: _Keys) -> bool:
    """Return whether the plan of `config` has the same keys whatever the value of `word`.

    `start` has the value that holds where the word is left out. That value alone is not enough to try, because it may
    mean the same, as "auto" means the precision that was named.
    """
    if word.name.partition(".")[0] in UNKEYED or word.name == "seed":  # seeds of the groups take its value
        return False
    keys, value, tried = keys_of(config), _at(config, word.path), 0
    for other in _other_groups(word.name) if word.is_group else _others(value):
        found = keys_of(_with(config, word.path, other)) if other != value else None
        if found and found != keys:
            return False
        tried += bool(found)
    return tried > 0 and keys_of(_with(config, word.path, _at(start, word.path))) in (keys, None)


def _cause(config: Config, word: Word, given: Sequence[Word], start: Config, keys_of: _Keys) -> str:
    """Return the reason: the first other word without which this one would decide something."""
    default = chosen(())
    for also in sorted(given, key=lambda other: other.is_group):
        if also.path[0] == word.name or also is word:
            continue
        without = _with(config, also.path, _at(default if also.is_group else start, also.path))
        for kept in given if also.is_group else ():
            if kept.path[0] == also.name != kept.name:
                without = _with(without, kept.path, _at(config, kept.path))
        if keys_of(without) and not _decides_nothing(without, word, start, keys_of):
            return f"because of {also.text}"
    said = meaning(config, word.path).rstrip(".")
    return f"nothing in this plan reads it{f': {said[0].lower()}{said[1:]}' if said else ''}"


class _Keys:
    """The keys of configurations' plans. Each is planned once: the same is asked for many options."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[str] | None] = {}

    def __call__(self, config: Config) -> frozenset[str] | None:
        """Return the keys of a configuration's plan; None where there is no such plan."""
        asked = repr(config)
        if asked not in self._known:
            try:
                self._known[asked] = frozenset(node.key for node in build_graph(config))
            except UserError:
                self._known[asked] = None
        return self._known[asked]


def _others(value: Any) -> Iterator[Any]:
    """Yield other values of an option's type. Some may be outside its range."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, Enum):
        yield from (other for other in type(value) if other is not value)
    elif isinstance(value, int):
        yield from (value + 1, 2 * value + 2)
    elif isinstance(value, float):
        yield from (value / 2, (value + 1) / 2)
    elif isinstance(value, str):
        yield f"{value}?"  # an option that is read would refuse it
    elif isinstance(value, list):
        yield from (value[:-1], value[:1])


def _other_groups(group: str) -> Iterator[Any]:
    """Yield other options of a group: the one that its schema is by itself, and the command's default."""
    if hasattr(Config, group):
        yield getattr(Config(), group)
        yield getattr(chosen(()), group)


def _pinned(config: Config, graph: Graph) -> Config:
    """Return `config` with the branches of the hub as the commits of `graph`, so that no lookup is repeated."""
    for role in ("model", "data"):
        node = graph.roles.get(role)
        if node is not None and getattr(node.config, "revision", None):
            config = _with(config, (role, "revision"), node.config.revision)
    return config


def _at(config: Any, path: Sequence[str]) -> Any:
    """Return the value at `path`; None where the configuration has no such place."""
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _with(config: Any, path: Sequence[str], value: Any) -> Any:
    """Return `config` with another value at `path`; `config` as it is where it has no such place."""
    name, *rest = path
    if isinstance(config, Mapping):
        return {**config, name: _with(config.get(name), rest, value) if rest else value}
    if not hasattr(config, name):
        return config
    inner = _with(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})

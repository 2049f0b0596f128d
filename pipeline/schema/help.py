"""The text of `python -m pipeline --help`: every group and option with its value and its meaning. No torch here.

The meanings are the docstrings of the options' own dataclasses, so they are written once.
"""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, get_args, get_type_hints

import yaml

from pipeline.schema.compose import compose
from pipeline.schema.config import Config
from pipeline.schema.documented import first_sentence, meanings
from pipeline.schema.overrides import groups

USAGE = """\
Prune a language model, recover it, and report how much came back.

  python -m pipeline prune=llmpruner ratio=0.5 adapter=rora
  python -m pipeline action=plan model=llama-7b ratio=0.2
  python -m pipeline -m adapter=lora,rora ratio=0.2,0.5
  python -m pipeline --cfg job

GROUP=OPTION chooses, KEY=VALUE sets one value, -m runs every combination of values between commas.
The options of a group depend on what is chosen: python -m pipeline prune=wanda data=file --help
"""
EXPERIMENT = "Options of several groups, chosen together; what else is on the command line has the last word."
LONGEST = 40
"""Characters of a value that are shown."""
WIDEST = 120
"""Characters of a line."""


def text(words: Sequence[str]) -> str:
    """Return the help, with the values that the overrides `words` give.

    Raises:
        UserError: as `compose`.
    """
    config, known = compose(*words), groups()
    fields, told = _fields(config), meanings(Config)
    parts = [USAGE, *_lines(config, "", [name for name in fields if name not in known])]
    for group in sorted(known, key=lambda name: fields.index(name) if name in fields else len(fields)):
        parts += ["", *_wrapped(f"{group}: {told.get(group, EXPERIMENT)}")]
        parts += _wrapped(f"one of {', '.join(known[group])}", indent=4)
        if group in fields:
            parts += _lines(getattr(config, group), group)
    return "\n".join(parts)


def _lines(options: Any, where: str, names: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of a dataclass's options, or of those in `names`; it is at `where` on the command line."""
    told, kinds = meanings(type(options)), get_type_hints(type(options))
    for name in names or _fields(options):
        value, place = getattr(options, name), f"{where}.{name}".lstrip(".")
        inner = dataclasses.is_dataclass(value)
        yield f"  {place}" if inner else f"  {place}={_shown(value)}"
        yield from _wrapped(told.get(name) or _meaning_of_kind(kinds[name]), indent=6)
        if inner:
            yield from _lines(value, place)


def _fields(options: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(options)]


def _wrapped(line: str, indent: int = 0) -> list[str]:
    """Return a line in pieces that a terminal shows whole."""
    width, space = min(shutil.get_terminal_size().columns, WIDEST), " " * indent
    return textwrap.wrap(line, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def _meaning_of_kind(kind: Any) -> str:
    """Return the meaning of an option that is an enumeration or options itself: that of its class."""
    own = [one for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one) or _is_enumeration(one)]
    return first_sentence(inspect.getdoc(own[0]) or "") if own else ""


def _is_enumeration(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _shown(value: Any) -> str:
    """Return a value as the command line has it, cut where it is long."""
    plain = value.name if isinstance(value, Enum) else value
    line = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"

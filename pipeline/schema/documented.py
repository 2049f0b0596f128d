"""What the options mean, in the words of their own docstrings. No torch here."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def meanings(kind: type[Any]) -> dict[str, str]:
    """Return the first sentence of the docstring of every field of a dataclass, by the field's name.

    A field that a subclass declares again without a docstring keeps the one it had.
    """
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        found |= _own(owner)
    return found


def meaning(options: Any, path: Sequence[str]) -> str:
    """Return the first sentence on the option at `path` in nested dataclasses; empty where it has none."""
    *before, name = path
    for part in before:
        options = getattr(options, part, None)
    return meanings(type(options)).get(name, "") if dataclasses.is_dataclass(options) else ""


def _own(kind: type[Any]) -> dict[str, str]:
    """Return the documented fields of one class, without those of its bases."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = first_sentence(ast.literal_eval(text.value))
    return found


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring on one line."""
    line = " ".join(text.split())
    # A full stop within brackets, as in "(arXiv 2304.01933)" or "(e. g. x)", ends no sentence.
    depth = 0
    for place, sign in enumerate(line):
        depth += (sign in "([") - (sign in ")]")
        if sign == "." and not depth and line[place + 1 : place + 2] in ("", " "):
            return line[: place + 1]
    return line

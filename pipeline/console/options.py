"""Options of the commands that only read a store. They are written NAME=VALUE, as on the main command line."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def split(arguments: Sequence[str], known: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments that are none of the `known` options, and the options that are given.

    `runtime.artifact_root=DIR` is read as `artifact_root=DIR`.
    """
    words, given = [], {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.removeprefix("runtime.")
        if name in known and equals and value:
            given[name] = value
        else:
            words.append(argument)
    return words, given

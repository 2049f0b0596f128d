"""Options of the commands that only read a store: NAME=VALUE, as on the main command line, without Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.errors import UserError
from stages.methods import nearest


def parse(arguments: Sequence[str], known: Mapping[str, str], usage: str) -> dict[str, str]:
    """Return the options given; `runtime.artifact_root` may be written as there.

    Raises:
        UserError: an argument is none of the `known` options; the message ends with `usage`.
    """
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.removeprefix("runtime.")
        if name not in known or not equals or not value:
            raise UserError(f"'{argument}' is not an option{nearest(name, known)}. Usage: {usage}")
        given[name] = value
    return given

"""Options of the commands that only read a store. They are written NAME=VALUE, as on the main command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.engine.store import DEFAULT, VARIABLE, Store
from stages.common.choices import nearest
from stages.common.files import users_path
from stages.errors import UserError


def parse(arguments: Sequence[str], known: Mapping[str, str], usage: str) -> dict[str, str]:
    """Return the options given. `runtime.artifact_root=DIR` is read as `artifact_root=DIR`.

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


def show(command: str, arguments: Sequence[str] | None, output: str, work: Callable[[Path, Path], None]) -> None:
    """Run a command that reads a store and writes one file, then print the file's path.

    Args:
        command: its name, "pipeline.compare".
        arguments: `artifact_root=DIR` and `output=FILE`, or None for the command line's.
        output: the file written where none is named.
        work: gets the store and the file, prints and writes. Its user and disk errors end the process with one line.
    """
    options = {"artifact_root": os.environ.get(VARIABLE, DEFAULT), "output": output}
    usage = f"python -m {command} [artifact_root=DIR] [output=FILE{Path(output).suffix}]"
    try:
        options |= parse(sys.argv[1:] if arguments is None else arguments, options, usage)
        file = users_path(options["output"])
        work(Store.at(options["artifact_root"]).root, file)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(file)

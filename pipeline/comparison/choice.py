"""The runs that a command line chooses: by key, by experiment, or all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product

from pipeline.console.lines import complain
from pipeline.schema.written import written
from stages.common.choices import nearest
from stages.errors import UserError

EVERYTHING = "everything"

Choice = Callable[[Mapping[str, str]], Collection[str]]
"""Returns the names of the reports that are wanted, from {name: key} of all."""


def chosen(words: Sequence[str], options: Sequence[str], usage: str) -> Choice:
    """Return the choice that a command line's words make. It raises a `UserError` where it finds nothing to take.

    Args:
        words: beginnings of keys or names; or `everything`; or `experiment=NAME` and overrides, as for the run.
        options: names of the command's own options, which are none of the words.
        usage: ends the error message.

    Raises:
        UserError: the words mix ways of choosing, or name an experiment or an option that there is not.
    """
    if any(word.startswith("experiment=") for word in words):
        return _of_experiment(words)
    unknown = next((word for word in words if "=" in word), None)
    if unknown:
        raise UserError(f"'{unknown}' is not an option{nearest(unknown.partition('=')[0], options)}. Usage: {usage}")
    if EVERYTHING in words and len(words) > 1:
        raise UserError(f"'{EVERYTHING}' takes all runs, so it stands alone. Usage: {usage}")
    return everything if not words or EVERYTHING in words else _of_keys(words)


def everything(found: Mapping[str, str]) -> Collection[str]:
    """Return all names."""
    return found.keys()


def _of_keys(words: Sequence[str]) -> Choice:
    def choose(found: Mapping[str, str]) -> Collection[str]:
        taken = {word: [name for name, key in found.items() if word and _begins(word, name, key)] for word in words}
        missing = [word for word, names in taken.items() if not names]
        if missing:
            raise UserError(
                f"no report has a key or a name that begins with '{missing[0]}'. "
                "`python -m pipeline.inspect ls` lists them."
            )
        return {name for names in taken.values() for name in names}

    return choose


def _begins(word: str, name: str, key: str) -> bool:
    return name.startswith(word) or key.startswith(word)


def _of_experiment(words: Sequence[str]) -> Choice:
    keys = experiment(words)
    run = f"python -m pipeline {'-m ' if len(keys) > 1 else ''}{' '.join(words)}"

    def choose(found: Mapping[str, str]) -> Collection[str]:
        taken = {name for name, key in found.items() if key in keys}
        if not taken:
            raise UserError(
                f"none of the {len(keys)} runs of this experiment is in the store. Run it: {run}. "
                "If they were made with overrides, give these here too."
            )
        if len(taken) < len(keys):
            complain(f"{len(taken)} of the {len(keys)} runs are in the store. Run the others: {run}")
        return taken

    return choose


def experiment(overrides: Sequence[str]) -> set[str]:
    """Return the keys of the reports that `python -m pipeline -m experiment=NAME …` makes with these overrides."""
    from pipeline.planning.build import build_graph  # Hydra, only where an experiment is named
    from pipeline.schema.compose import compose

    given = dict(word.partition("=")[::2] for word in overrides)
    compose(f"experiment={given['experiment']}")  # says which experiments there are, if this is none of them
    swept = written("experiment", given["experiment"]).get("hydra", {}).get("sweeper", {}).get("params", {})
    values = {name: str(value).split(",") for name, value in swept.items()}
    values |= {name: value.split(",") if name in swept else [value] for name, value in given.items()}
    cells = product(*([f"{name}={value.strip()}" for value in own] for name, own in values.items()))
    return {build_graph(compose(*cell)).roles["report"].key for cell in cells}

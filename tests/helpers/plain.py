"""The choices that most tests run with, whatever the default of the command line is: quick, and of one shape."""

from __future__ import annotations

from collections.abc import Iterable

PLAIN = ("prune=llmpruner", "adapter=rora", "data=commonsense", "recover=standard")


def plain(given: Iterable[str]) -> list[str]:
    """Return the choices of `PLAIN` that the words of a command line leave open."""
    words = [word.lower() for word in given]
    groups = {word.partition("=")[0] for word in words if "=" in word}  # `recover` alone is a target of make
    if any(word.startswith("model=sheared") for word in words):
        groups.add("prune")  # the model says itself that it comes pruned
    if "experiment=recommended" in words:
        return []
    return [choice for choice in PLAIN if choice.partition("=")[0] not in groups]

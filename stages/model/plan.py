"""The plan of the model stage: what the model group asks for, found before anything runs. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.common.checks import require
from stages.common.files import read_object, users_path
from stages.decoders.gguf_header import read_header
from stages.decoders.gguf_llama import ARCHITECTURES
from stages.decoders.gguf_llama import config_fields as gguf_fields
from stages.errors import UserError
from stages.fetch.hub import resolve_revision
from stages.model.config import ModelEntry, ModelSource
from stages.model.hub import cached_config
from stages.model.local import directory_digest
from stages.stage import Planned

READING = 1
"""Raised by one when GGUF files become other models or tokenizers: it moves the keys of these sources alone. Since 1
text is split as the file says. Before, it was split as GPT-2 splits it, and SmolLM2's two spaces before a digit became
other tokens."""


def planned(entry: ModelEntry, cache: Path) -> Planned:
    """Return the model stage's config, with branch names and local paths turned into commits and digests.

    Raises:
        UserError: an option is missing or misplaced, or the model that it names can't be found.
    """
    if entry.path is not None:
        require(entry.kind == "local", "model.path", "given together with model=local", entry.path)
    source = ModelSource(
        kind=entry.kind,
        wheel=entry.wheel,
        member=entry.member,
        member_sha256=entry.member_sha256,
        repo=entry.repo,
        trust_remote_code=entry.trust_remote_code,
        reading=READING if entry.kind == "wheel" else 0,
    )
    locations = {}
    if entry.kind == "hub":
        if not entry.repo:
            raise UserError("model.kind=hub needs model.repo=OWNER/NAME.")
        source.revision = resolve_revision(entry.repo, entry.revision or "main")
    if entry.kind == "local":
        if not entry.path:
            raise UserError("model=local needs model.path=DIR (config.json and safetensors) or model.path=FILE.gguf.")
        locations["model"] = users_path(entry.path)
        source.digest = directory_digest(locations["model"], cache)
        source.reading = READING if locations["model"].is_file() else 0
    # The name becomes part of a directory's name.
    label = re.sub(r"[^\w.+-]", "-", entry.name) or "model"
    return Planned(label=label, config=source, locations=locations)


def known_fields(entry: ModelEntry) -> Mapping[str, Any] | None:
    """Return the model's config.json as far as the options alone tell it: a local model's, or the model's YAML."""
    local = None if entry.path is None else _fields_at(users_path(entry.path))
    return local or entry.shape or None


def _fields_at(place: Path) -> Mapping[str, Any] | None:
    """Return the config.json of a local model; None where the directory has none, or a file does not tell it."""
    if place.is_file():
        header = read_header(place)
        return gguf_fields(header) if header.architecture in ARCHITECTURES else None
    return read_object(place / "config.json") if (place / "config.json").is_file() else None


def config_fields(entry: ModelEntry, source: ModelSource, places: Iterable[Path | None]) -> Mapping[str, Any] | None:
    """Return the model's config.json from the nearest place that has one; None before any has.

    The directories `places` come first, then the hub's cache, and last the model's YAML.
    """
    for place in places:
        if place is not None and (fields := _fields_at(place)) is not None:
            return fields
    found = cached_config(entry.repo, source.revision) if entry.repo and source.revision else None
    return found or entry.shape or None

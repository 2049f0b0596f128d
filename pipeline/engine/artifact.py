"""An artifact: a directory with a manifest, which says what decided it, what it was built from and what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.files import read_object
from stages.common.sealed import SEAL, is_sealed
from stages.errors import UserError

MANIFEST = "manifest.json"
NEEDED = {"stage", "key", "payload", "digest", "files", "input_digests", "summary"}
"""Fields that every manifest has."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact: its directory and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """The full key, 64 hex digits."""
        return str(self.manifest["key"])

    @property
    def digest(self) -> str:
        """SHA-256 over the names and contents of the files."""
        return str(self.manifest["digest"])

    @property
    def name(self) -> str:
        """`<stage>/<directory>`, as users see it."""
        return named(self.path)


def named(path: Path) -> str:
    """Return a directory of the store as users see it."""
    return f"{path.parent.name}/{path.name}"


def read_manifest(file: Path) -> dict[str, Any] | None:
    """Return the manifest in `file`; None where it is damaged."""
    try:
        manifest = read_object(file)
    except UserError:
        return None
    # Manifests of older versions have no seal.
    whole = manifest.keys() >= NEEDED and (SEAL not in manifest or is_sealed(manifest))
    return manifest if whole else None

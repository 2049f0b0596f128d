"""The provenance of results: versions and commit, and how they differ from those that built a cached artifact."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "lm-eval",
    "hydra-core",
    "wandb",
    "gguf",
    "numpy",
)


@cache
def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def commit() -> str:
    """Return this project's git commit, with "+changes" when the tree differs from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head[:12] + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return done.stdout.decode(errors="replace").strip()


def provenance() -> dict[str, Any]:
    """Return what a manifest records about the code that built it."""
    return {"commit": commit(), "versions": versions()}


def drift(manifest: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return {package or "commit": (then, now)} where the code that built an artifact differs from today's."""
    then = manifest.get("provenance", {})
    changed: dict[str, tuple[str, str]] = {}
    if then.get("commit", "unknown") != commit():
        changed["commit"] = (str(then.get("commit", "unknown")), commit())
    for name, version in versions().items():
        before = then.get("versions", {}).get(name, "unknown")
        if before != version:
            changed[name] = (before, version)
    return changed

"""A file of an artifact in a second place: a hard link where the file system has them, else a copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def place(source: Path, target: Path) -> None:
    """Link or copy `source` to `target`. A source that is itself a link, to a file outside the store, is copied."""
    target.unlink(missing_ok=True)
    if not source.is_symlink():
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    beside = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, beside)
    os.replace(beside, target)

"""The environment of the processes that tests start."""

from __future__ import annotations

import os
import sys


def same_imports() -> dict[str, str]:
    """Return an environment in which a started Python imports from where this one does, these helpers among it."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

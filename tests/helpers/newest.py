"""The requirements of pyproject.toml without their versions: -m helpers.newest [--without NAME].

torch keeps its version: results to the byte, and the wheels of GPUs, are of that one.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

KEPT = ("torch",)
NAME = re.compile(r"[A-Za-z0-9._-]+")


def newest(project: dict[str, Any], without: Sequence[str] = ()) -> Iterator[str]:
    """Yield each package that a development environment has, with its version only where that is kept."""
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["trackio"], *extras["wandb-report"]]
    for requirement in dict.fromkeys(wanted):
        found = NAME.match(requirement)
        assert found is not None, requirement
        name = found[0]
        if name not in (project["name"], *without):
            yield requirement if name in KEPT else name


if __name__ == "__main__":
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    print(*newest(tomllib.loads(text)["project"], sys.argv[2:]))

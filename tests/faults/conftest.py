"""The table of `make faults`: what was tried, and what came of it."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import pytest

from stages.common.tables import aligned

ENDINGS = {"passed": "survived", "failed": "lost", "error": "lost"}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a line for each campaign, which is a file of this folder."""
    if "faults or" not in config.option.markexpr:
        return
    counts: dict[str, Counter[str]] = {}
    for outcome, ending in ENDINGS.items():
        for report in terminalreporter.getreports(outcome):
            campaign = PurePosixPath(report.nodeid.partition("::")[0]).stem.removeprefix("test_").replace("_", " ")
            # A test of many trials says how many, and how many were lost.
            told = dict(report.user_properties)
            tried, lost = int(told.get("tried", 1)), int(told.get("lost", ending == "lost"))
            counts.setdefault(campaign, Counter()).update(lost=lost, survived=tried - lost)
    rows = [("campaign", "tried", "survived", "lost")]
    rows += [(name, str(c.total()), str(c["survived"]), str(c["lost"])) for name, c in sorted(counts.items())]
    terminalreporter.write_line("")
    for line in aligned(rows):
        terminalreporter.write_line(line)

"""The project's Markdown pages, and what a test reads of them."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.world import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
"""Relative to the project's root, README.md among them."""


def blocks(page: str, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in one of `languages`, in order."""
    fence = rf"^```(?:{'|'.join(languages)})\n(.*?)^```$"
    return re.findall(fence, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """Return where the links and pictures of a page lead, those to other sites left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    return [target for target in targets if "://" not in target]


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them: small letters, words joined by hyphens."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}

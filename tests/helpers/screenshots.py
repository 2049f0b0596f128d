"""`python -m helpers.screenshots PAGE.html DIRECTORY`: small pictures of the top of a page, light and dark."""

from __future__ import annotations

import sys
from pathlib import Path

from helpers.browser import CHROMIUM, WITHOUT, opened

WIDTH, HEIGHT = 960, 1020
"""Pixels: the sentences and the curves of a comparison."""


def main(page: str, directory: str) -> None:
    """Write NAME-light.png and NAME-dark.png."""
    if CHROMIUM is None:
        raise SystemExit(f"error: {WITHOUT}")
    file = Path(page).resolve()
    if not file.is_file():
        raise SystemExit(f"error: {file} is missing. Write it: make compare")
    for theme in ("light", "dark"):
        target = Path(directory) / f"{file.stem}-{theme}.png"
        with opened(file, width=WIDTH, height=HEIGHT, theme=theme) as found:
            found.page.screenshot(path=target)
        print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A headless Chromium for tests of pages, or the sentence that says how to get one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
WITHOUT = "there is no Chromium here: this test opens a page in one (Debian: apt-get install chromium)"
READY = """(!document.querySelector('.tools') || document.documentElement.dataset.ready === 'true') &&
[...document.querySelectorAll('section.charts')].every(section => section.dataset.ready === 'true')"""


@dataclass
class Opened:
    """A page in the browser, with what it said on the console and what it asked the network for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(file: Path, *, width: int = 1280, height: int = 900, theme: str = "light") -> Iterator[Opened]:
    """Open a page in a headless Chromium, and wait until its charts, if it has any, are drawn."""
    from playwright.sync_api import sync_playwright

    # A sandbox needs a user other than root, which containers of tests are run by.
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(file.as_uri())
        found.page.wait_for_function(READY)
        yield found
        browser.close()

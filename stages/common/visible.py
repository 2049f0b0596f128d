"""Text of any origin as a terminal or a page may show it: with escapes for characters that would do something."""

from __future__ import annotations

import re

ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, overrides of a text's direction, and bytes of a name that are no text."""


def visible(text: str) -> str:
    r"""Return `text` with `\u001b` and the like for what moves a cursor, recolours, reorders or can't be written.

    JSON and JavaScript read such an escape as the character, so their strings keep their meaning.
    """
    return ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Return `text` on one line, visible."""
    return visible(" ".join(text.split()))

"""The colours of the pages and of every picture in them. Each is a CSS variable of `page.html`, which turns dark."""

from __future__ import annotations

PALETTE = {
    "ink": "#22272c",
    "muted": "#5d6872",
    "rule": "#d9dee2",
    "page": "#fdfdfc",
    "dense": "#76838f",
    "dense_recovered": "#7a5ba7",
    "pruned": "#c8642c",
    "recovered": "#17788a",
    "quantised": "#8c7a1f",
}
"""CSS variable: its colour on a light page. Grey, orange and blue-green differ for every kind of colour vision."""

SERIES = ("#17788b", "#c8642d", "#7a5ba8", "#4f8a3c", "#b0457a", "#8c7a1f", "#3f6fb5", "#a2543a")
"""Colours of overlaid runs, readable on light and dark pages alike."""


def css(name: str) -> str:
    """Return a colour of the palette as CSS, with its light value for where the page's variables are missing."""
    return f"var(--{name}, {PALETTE[name]})"

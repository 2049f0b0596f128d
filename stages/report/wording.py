"""Numbers and names as a report writes them. A missing number is a dash, never a zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MODELS = ("dense", "dense_recovered", "pruned", "recovered", "quantised")
"""The places in a recovery, in the order in which a report shows them, and what an export makes of the last."""

NAMES = {"dense_recovered": "recovered dense"}
"""The name of a place whose key is not a word."""

EFFECTS = {
    "acc": "accuracy",
    "above_chance": "above_chance",
    "acc_norm": "accuracy_norm",
    "bits_per_byte": "bits_per_byte",
}
"""A model's scores on a task, with the keys under which the differences between models are."""

LARGEST = 700.0
"""Nats above which a perplexity is no longer a float."""
DASH = "–"
PERCENT = "\u00a0%"
"""The sign has a no-break space before it, so that a line never starts with the sign."""

Write = Callable[[float | None], str]
"""How one kind of number is written."""


def percent(value: float | None, *, digits: int = 1) -> str:
    """Return a fraction as a percentage, "41.3 %"."""
    return DASH if value is None else f"{_minus(value * 100, digits)}{PERCENT}"


def bits(value: float | None) -> str:
    """Return bits per byte, "1.234"."""
    return DASH if value is None else _minus(value, 3)


def perplexity(value: float | None) -> str:
    """Return a perplexity to three or four digits, "22.7", "1,234"."""
    if value is None:
        return DASH
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def millions(value: float | None) -> str:
    """Return a count of parameters, "134.5M" or "6.74B"."""
    if value is None:
        return DASH
    return f"{value / 1e9:.2f}B" if value >= 1e9 else f"{value / 1e6:.1f}M" if value >= 1e5 else f"{value:,.0f}"


def count(value: float | None) -> str:
    """Return a whole number with thousands separated."""
    return DASH if value is None else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """Return bytes as megabytes (10⁶ bytes)."""
    return DASH if value is None else f"{value / 1e6:,.0f} MB"


def milliseconds(value: float | None) -> str:
    """Return seconds as milliseconds."""
    return DASH if value is None else f"{value * 1e3:,.0f} ms" if value >= 0.1 else f"{value * 1e3:.1f} ms"


def seconds(value: float | None) -> str:
    """Return a duration, "0.4 s", "72 s", "12 min 5 s"."""
    if value is None:
        return DASH
    if value < 600:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def signed(value: float | None, write: Write) -> str:
    """Return a difference with its sign, "+1.2". A missing one is a dash."""
    text = write(value)
    return text if value is None or value <= 0 or not text.strip("0.") else f"+{text}"


def points(value: float | None) -> str:
    """Return a difference of fractions in percentage points, "−3.1"."""
    return bare(percent(value))


def chances(p: float) -> str:
    """Return a probability of chance alone, "p = 0.034", "p < 0.001"."""
    if p < 0.001:
        return "p < 0.001"
    digits = 4 if abs(p - 0.05) < 0.001 else 3  # so that a p near the level shows on which side it is
    return f"p = {p:.{digits}f}" if p < 0.9995 else "p = 1"


def plusminus(error: float | None, write: Write) -> str:
    """Return a standard error, "± 1.2", without the unit, which the value shows."""
    return "" if error is None else f"± {bare(write(error))}"


def times(value: float | None) -> str:
    """Return a ratio, "0.83×"."""
    return DASH if value is None else f"{value:.2f}×"


def span(interval: Sequence[float] | None, write: Write) -> str:
    """Return an interval as "[low, high]", without the unit, which the value shows."""
    return "" if interval is None else f"[{', '.join(bare(write(end)) for end in interval)}]"


def bare(number: str) -> str:
    """Return a written number without its unit."""
    for unit in (PERCENT, " ms", "×"):
        number = number.removesuffix(unit)
    return number


def listing(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _minus(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("-", "−")

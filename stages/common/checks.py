"""One check of a value against its rule, with one form of error."""

from __future__ import annotations

from stages.errors import UserError


def require(fulfilled: bool, field: str, rule: str, value: object) -> None:
    """Raise a `UserError` that names the field, the rule and the value, unless the rule is `fulfilled`."""
    if not fulfilled:
        raise UserError(f"{field} must be {rule}, and is {value!r}.")


def short(value: object, most: int = 40) -> str:
    """Return `value` as text, cut in the middle where it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"

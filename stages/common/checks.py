"""One check of a value against its rule, with one form of error."""

from __future__ import annotations

from stages.errors import UserError


def require(fulfilled: bool, field: str, rule: str, value: object) -> None:
    """Raise a `UserError` that names the field, the rule and the value, unless the rule is `fulfilled`."""
    if not fulfilled:
        raise UserError(f"{field} must be {rule}, and is {value!r}.")

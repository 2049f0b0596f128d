"""Errors of the disk, told in the user's words."""

from __future__ import annotations

import errno

from stages.errors import UserError


def explain_disk_error(error: Exception, doing: str) -> UserError | None:
    """Return a disk error in the user's words: what was being done, what failed, what to do. None for other errors.

    safetensors reports a full disk as an error of its own, with the system's error number in its text.
    """
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if _is(error, errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left on the device while {doing}{where}. What was finished is kept: free some space "
            "(python -m pipeline.inspect gc lists what can go) or move the store with runtime.artifact_root=DIR, "
            "then run the same command again."
        )
    if _is(error, errno.EFBIG):
        return UserError(
            f"a file became larger than this shell or disk allows while {doing}{where}. What was finished is kept: "
            "lift the limit (ulimit -f unlimited) or move the store with runtime.artifact_root=DIR, then run the same "
            "command again."
        )
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
        return UserError(f"{error.strerror or error} while {doing} ({error.filename}).")
    return None


def _is(error: Exception, *numbers: int) -> bool:
    """Return whether an error is one of the system's with these numbers."""
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(f"(os error {number})" in str(error) for number in numbers)

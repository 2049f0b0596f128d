"""Errors of the disk, told in the user's words."""

from __future__ import annotations

import errno

from stages.errors import UserError


def explain_disk_error(error: Exception, doing: str) -> UserError | None:
    """Return a disk error in the user's words: what was being done, what failed, what to do. None for other errors.

    safetensors reports a full disk as an error of its own, with the system's error number in its text.
    """
    full = {errno.ENOSPC, errno.EDQUOT}
    number = error.errno if isinstance(error, OSError) else None
    if number in full or any(f"(os error {code})" in str(error) for code in full):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return UserError(
            f"no space left on the device while {doing}{where}. What was finished is kept: free some space "
            "(python -m pipeline.inspect gc lists what can go) or move the store with runtime.artifact_root=DIR, "
            "then run the same command again."
        )
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
        return UserError(f"{error.strerror or error} while {doing} ({error.filename}).")
    return None

"""Rows of data sets, read by `datasets` from the hub at a commit or from local files. No code of theirs is run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.errors import UserError
from stages.fetch.hub_errors import explain_hub_errors

log = logging.getLogger(__name__)

Row = dict[str, Any]
LOADERS = ("json", "csv", "text", "parquet", "arrow")
"""Formats that a definition's `dataset_path` may name instead of a data set of the hub. `data_files` are read in it."""
DROPPED = ("trust_remote_code", "streaming", "revision", "data_files")
"""Arguments of a definition that are not passed on, because this project decides them."""
MEDIA = ("Image", "Audio", "Video", "Pdf", "Nifti")
"""Kinds of columns that are neither text nor numbers."""


def load_rows(
    path: str,
    name: str | None,
    split: str,
    *,
    revision: str | None = None,
    arguments: dict[str, Any] | None = None,
    data_files: Any = None,
) -> Iterator[Row]:
    """Return the rows of `split` of the data set `path`, in the configuration `name`, in order.

    Raises:
        UserError: the rows can't be read, or hold more than text and numbers.
    """
    import datasets

    kept = {key: value for key, value in (arguments or {}).items() if key not in DROPPED}
    files = data_files if data_files is not None else (arguments or {}).get("data_files")
    what = f"{path}{f' ({name})' if name else ''}"
    if path not in LOADERS:
        log.info("reading '%s' of %s at %s from the hub", split, what, (revision or "main")[:12])
    with _explained(what, split), explain_hub_errors(path, revision or "main", repo_type="dataset"):
        rows = datasets.load_dataset(path, name, split=split, revision=revision, data_files=files, **kept)
        for column, feature in rows.features.items():
            # The text of a feature also shows what is nested in its lists and structures.
            if any(f"{kind}(" in repr(feature) for kind in MEDIA):
                raise UserError(f"column '{column}' of {what} holds {feature!r}: only text and numbers can be judged.")
    return iter(rows)


@contextmanager
def _explained(what: str, split: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "scripts are no longer supported" in cause:
            cause = "it comes as a program, and code from the hub is never run"
        raise UserError(f"'{split}' of {what} can't be read: {cause.rstrip('.')}.") from error

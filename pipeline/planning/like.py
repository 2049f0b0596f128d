"""The record of the earlier cut that `prune.like` names: a file, a directory, or an artifact of the store. No torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.engine.store import Store
from pipeline.schema.config import Config
from stages.common.files import users_path
from stages.errors import UserError

RECORD = "pruning.json"


def record_of(config: Config) -> Path | None:
    """Return the path of the record that `prune.like` names; None where the option is not set.

    Raises:
        UserError: nothing is so named, or what is named has no such record.
    """
    named = config.prune.like
    if named is None:
        return None
    place = users_path(named)
    if place.is_file():
        return place
    if not place.is_dir():
        try:
            place = Store.at(config.runtime.artifact_root).find(named).path
        except UserError as error:
            raise UserError(f"prune.like={named} is neither a file nor a directory, and {error}") from None
    for found in (place / RECORD, place / "model" / RECORD):
        if found.is_file():
            return found
    raise UserError(f"prune.like={named}: {place} has no {RECORD}, so it is no pruned model. Give one that is.")

"""Models of the Hugging Face hub: the files that are wanted, complete. See `stages.fetch.hub`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from stages.common.files import COMPANIONS, read_json, read_object
from stages.errors import UserError
from stages.fetch.hub import cache_folder, fetch_file, license_of, repository
from stages.fetch.hub_errors import explain_hub_errors, unreachable
from stages.model.config import ModelSource
from stages.model.weights import model_files, place, weight_files
from stages.stage import JSON, Context

log = logging.getLogger(__name__)


def from_hub(config: ModelSource, context: Context, target: Path) -> JSON:
    """Download the model that `config` names, place it in `target`, and return its origin.

    Raises:
        UserError: the model can't be fetched (the message says why), or is not a whole checkpoint.
    """
    if not config.repo or not config.revision:
        raise UserError("model.kind=hub needs model.repo=OWNER/NAME.")
    place(download(config.repo, config.revision, code=config.trust_remote_code), target)
    return {"repo": config.repo, "revision": config.revision} | license_of(config.repo, config.revision)


def cached_config(repo: str, revision: str) -> dict[str, Any] | None:
    """Return `config.json` of the commit `revision` where the hub's cache has it, without network."""
    path = cache_folder(repo) / "snapshots" / revision / "config.json"
    return read_object(path) if path.is_file() else None


def is_cached(repo: str, revision: str) -> bool:
    """Return whether the hub's cache has the whole checkpoint of the commit `revision`, without network."""
    try:
        return bool(model_files(cache_folder(repo) / "snapshots" / revision))
    except UserError:
        return False


def download(repo: str, revision: str, *, code: bool = False) -> Path:
    """Return the directory in the hub's cache that holds the model at the commit `revision`, complete.

    Only needed files are downloaded: config, tokenizer, weights in one format, and with `code` the Python files.

    Raises:
        UserError: the model can't be fetched, or is not a whole checkpoint.
    """
    where = f"{repo} at {revision[:12]}"
    with explain_hub_errors(repo, revision):
        try:
            siblings = repository(repo, revision).siblings or []
        except unreachable():
            snapshot = cache_folder(repo) / "snapshots" / revision
            if not is_cached(repo, revision):
                raise
            log.warning("the hub is out of reach: using %s as it lies in the cache.", where)
            return snapshot
        names = {sibling.rfilename for sibling in siblings}
        if "config.json" not in names:
            raise UserError(f"{where} has no config.json, so it is not a model that transformers can load.")
        small = ["config.json", *(name for name in COMPANIONS if name in names)]
        small += sorted(name for name in names if code and name.endswith(".py") and "/" not in name)
        for name in small:
            fetch_file(repo, revision, name)
        for name in weight_files(names, lambda index: read_json(fetch_file(repo, revision, index)), where):
            path = fetch_file(repo, revision, name)
    return path.parent

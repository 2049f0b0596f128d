"""Repositories of the Hugging Face hub, through `huggingface_hub` and its cache: commits, files, licences.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE have their usual meaning. Downloads are by commit and land in the
hub's own cache. They continue where a dropped connection or a killed run left them. No torch here, because a plan
resolves revisions.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from stages.common.files import sha256_of, write_text
from stages.errors import UserError
from stages.fetch.hub_errors import explain_hub_errors, shown, understood, unreachable
from stages.stage import JSON

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def resolve_revision(repo: str, revision: str, repo_type: str = "model") -> str:
    """Return the commit (40 hex digits) that `revision` of `repo` names. A commit names itself, without network.

    Where the hub is offline or out of reach, a branch is taken to be the commit it was when it was last looked up.

    Raises:
        UserError: there is no such repository or revision, no access to it, or no earlier lookup to fall back on.
    """
    if COMMIT.fullmatch(revision):
        return revision
    # The hub's cache keeps the commit that it last saw for a branch under refs/.
    reference = cache_folder(repo, repo_type) / "refs" / revision
    with explain_hub_errors(repo, revision, repo_type):
        try:
            commit = str(repository(repo, revision, repo_type).sha)
        except unreachable():
            if not reference.is_file():
                raise
            commit = reference.read_text(encoding="utf-8").strip()
            log.warning("the hub is out of reach: %s of %s is taken to be %s still.", revision, repo, commit)
            return commit
    # Other tools read these files too. One that names a commit in the cache is never changed to a commit that is not.
    if not reference.is_file() or (reference.parent.parent / "snapshots" / commit).is_dir():
        write_text(reference, commit)
    return commit


def repository(repo: str, revision: str, repo_type: str = "model") -> Any:
    """Return what the hub says of a repository: huggingface_hub's `ModelInfo` or `DatasetInfo`, with its commit.

    To be called within `explain_hub_errors`, which also sees to it that a hub that never answers is given up.

    Raises:
        Exception: any of `unreachable`, or another error that `explain_hub_errors` turns into a `UserError`.
    """
    from huggingface_hub import HfApi

    with understood():
        found = HfApi().repo_info(repo, revision=revision, repo_type=repo_type)
        if not COMMIT.fullmatch(str(found.sha)):
            raise ValueError(f"it names no commit of {repo}")
    return found


def license_of(repo: str, revision: str, repo_type: str = "model") -> JSON:
    """Return {"license": …} where the repository's card names one; empty where none is named or the hub doesn't say."""
    try:
        with explain_hub_errors(repo, revision, repo_type):
            card = getattr(repository(repo, revision, repo_type), "card_data", None)
    except UserError:  # the files are there already: a refusal now costs no more than the licence's name
        return {}
    name = getattr(card, "license", None)
    return {"license": name} if isinstance(name, str) else {}


def fetch_file(repo: str, revision: str, name: str, repo_type: str = "model") -> Path:
    """Return the path of one file in the hub's cache. The file is downloaded if it is not there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    cached = cache_folder(repo, repo_type) / "snapshots" / revision / name
    if not cached.is_file():
        url = hf_hub_url(repo, name, repo_type=repo_type, revision=revision)
        metadata = get_hf_file_metadata(url)
        # Files in Xet storage come in chunks by another protocol; huggingface_hub fetches these.
        if metadata.xet_file_data is None and metadata.etag and metadata.size:
            _continue_download(cache_folder(repo, repo_type), url, metadata.location, metadata.etag, metadata.size)
    return Path(hf_hub_download(repo, name, repo_type=repo_type, revision=revision))


def _continue_download(folder: Path, url: str, location: str, etag: str, size: int) -> None:
    """Bring the blob `etag` of `size` bytes into a repository's `folder`, continuing what a killed run left of it.

    huggingface_hub resumes after a dropped connection, but throws a killed download away. For a model in one file of
    gigabytes that would cost hours.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    # Lock and partial file have huggingface_hub's own names, so that the two never write one blob at once.
    blob = folder / "blobs" / etag
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / folder.name / f"{etag}.lock"
    for parent in (blob.parent, lock.parent):
        parent.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers()
    if urlsplit(location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # another host, such as a content network, must not see the token
    with FileLock(lock):
        if blob.exists():
            return
        partial = blob.with_name(f"{blob.name}.incomplete")
        arrived = partial.stat().st_size if partial.exists() else 0
        if arrived:
            log.info("continuing %s from %.0f MB", shown(url), arrived / 1e6)
        # A longer file is no beginning of this one.
        if arrived > size:
            partial.unlink()
            arrived = 0
        with partial.open("ab") as stream:
            http_get(location, stream, resume_size=arrived, headers=headers, expected_size=size)
        # The etag of a large file is its SHA-256.
        if SHA256.fullmatch(blob.name) and sha256_of(partial) != blob.name:
            partial.unlink()
            raise UserError(
                f"what came from {shown(url)} is damaged (another SHA-256) and was deleted. Run the same command again."
            )
        os.replace(partial, blob)


def cache_folder(repo: str, repo_type: str = "model") -> Path:
    """Return the directory in which the hub's cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "--".join([f"{repo_type}s", *repo.split("/")])

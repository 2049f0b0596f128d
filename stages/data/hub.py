"""Rows of any data set of the Hugging Face hub at a commit, with columns mapped by options; `data=alpaca` is one.

`datasets` says which files hold a subset's split. They come into the hub's cache one by one when they are reached. With
`rows` set, no more is fetched than needed, and a killed download continues. The list of files is remembered in our own
cache, so a split that was read once is read again without the hub. No code of a repository is run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from stages.common.choices import nearest
from stages.common.sealed import read_sealed, write_sealed
from stages.data.columns import ColumnsConfig, chosen, rows
from stages.data.config import DataConfig
from stages.data.readers import columns_of, format_of, records
from stages.data.rows import Built
from stages.errors import UserError
from stages.fetch.hub import fetch_file, license_of, resolve_revision
from stages.fetch.hub_errors import explain_hub_errors, understood
from stages.stage import Context

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class HubConfig(DataConfig):
    """The rows of the hub to read, and their columns."""

    repo: str | None = None
    """OWNER/NAME of the data set."""
    revision: str = "main"
    """Commit, branch or tag. In a key it is the commit."""
    subset: str | None = None
    """The data set's configuration, where it has several."""
    split: str = "train"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    rows: int | None = None
    """Number of records to take, the first ones; null is all of them."""


def pin(config: HubConfig, cache: Path) -> tuple[HubConfig, dict[str, Path]]:
    """Return `config` with its revision resolved to a commit.

    Raises:
        UserError: there is no such data set or revision, no access to it, or no earlier lookup to fall back on.
    """
    if not config.repo:
        raise UserError(f"data={config.name} needs data.repo=OWNER/NAME.")
    return replace(config, revision=resolve_revision(config.repo, config.revision, repo_type="dataset")), {}


def label(config: HubConfig) -> str:
    """Return the rows' name, for labels."""
    return " ".join(filter(None, (config.repo, config.subset)))


def build(config: HubConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return one row a record, in the split's order.

    Raises:
        UserError: the split can't be read, or a record lacks a named column (raised while it is read).
    """
    repo, where = str(config.repo), f"'{config.split}' of {label(config)} at {config.revision[:12]}"
    files = _files(config, context.cache)
    size = sum(file["size"] for file in files) / 1e6
    log.info("reading %s from the hub: %d files, %.1f MB, as far as they are not in its cache", where, len(files), size)
    first = _fetched(repo, config.revision, files[0]["path"])
    columns = chosen(config.columns, columns_of(first), where)
    source: dict[str, Any] = {"repo": repo, "revision": config.revision, "subset": config.subset, "split": config.split}
    source |= {"columns": columns} | license_of(repo, config.revision, "dataset")
    read = islice(_records(repo, config.revision, files), config.rows)
    return Built(rows=rows(read, columns, config.name, source), source=source)


def _records(repo: str, revision: str, files: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        yield from records(_fetched(repo, revision, file["path"]))


def _fetched(repo: str, revision: str, name: str) -> Path:
    with explain_hub_errors(repo, revision, "dataset"):
        return fetch_file(repo, revision, name, "dataset")


def _files(config: HubConfig, cache: Path) -> list[dict[str, Any]]:
    """Return path and size in bytes of each file of the split, from our cache or from the hub."""
    asked = "\n".join(map(str, (config.repo, config.revision, config.subset, config.split)))
    memory = cache / "splits" / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    remembered = read_sealed(memory)
    if remembered is None:
        remembered = {"files": _asked(config)}
        write_sealed(memory, remembered)
    files: list[dict[str, Any]] = remembered["files"]
    return files


def _asked(config: HubConfig) -> list[dict[str, Any]]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    repo = str(config.repo)
    names = _names(config)
    # A format that can't be read is found before anything is downloaded.
    for name in names:
        format_of(Path(name))
    with explain_hub_errors(repo, config.revision, "dataset"), understood():
        tree = HfApi().list_repo_tree(repo, recursive=True, revision=config.revision, repo_type="dataset")
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        return [{"path": name, "size": sizes[name]} for name in names]


def _names(config: HubConfig) -> list[str]:
    """Return the names of the split's files in the repository, as `datasets` finds them."""
    import datasets

    repo = str(config.repo)
    with explain_hub_errors(repo, config.revision, "dataset"):
        try:
            builder = datasets.load_dataset_builder(repo, config.subset, revision=config.revision)
        except (ValueError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
            cause = " ".join(str(error).split())
            if "scripts are no longer supported" in cause:
                cause = "it comes as a program, and code from the hub is never run; data.revision=refs/convert/parquet"
                cause += " is what the hub made of it, if it did"
            raise UserError(f"{label(config)} of the hub can't be read: {cause.rstrip('.')}.") from error
    splits = dict(builder.config.data_files or {})
    if config.split not in splits:
        raise UserError(
            f"{label(config)} has no split '{config.split}'{nearest(config.split, splits) or '.'} "
            f"It has: {', '.join(splits)}."
        )
    # A file is named hf://datasets/OWNER/NAME@COMMIT/PATH.
    inside = f"@{config.revision}/"
    return [str(PurePosixPath(file.partition(inside)[2])) for file in splits[config.split]]

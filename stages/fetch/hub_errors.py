"""Errors of the hub as one sentence each, with the remedy. A hub that says nothing is an error too."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from stages.errors import UserError

PASSWORD = re.compile(r"//[^/@\s]+@")
"""A user's name and password in an address."""


class NoHub(Exception):
    """What answers in the hub's place is no hub: the login page of a network, say, or a mirror that lacks the call."""


def unreachable() -> tuple[type[Exception], ...]:
    """Return the exceptions that mean that the hub is offline, can't be reached, or breaks off what it says."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    # A request's errors are of its address, the network, the time, the protocol and the encoding; none is a refusal.
    return (OfflineModeIsEnabled, httpx.RequestError, httpx.InvalidURL, NoHub)


def _away() -> tuple[type[Exception], ...]:
    """Return what `unreachable` does, and the errors that become of those within huggingface_hub and `datasets`."""
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    return (*unreachable(), LocalEntryNotFoundError, FileMetadataError, ConnectionError)


@contextmanager
def understood() -> Iterator[None]:
    """Raise `NoHub` where the block finds that an answer is not what a hub says: huggingface_hub believes what it gets.

    Raises:
        NoHub: an answer is no JSON, or lacks what every hub's answer has.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise NoHub(f"what answers there is no hub: {type(error).__name__}: {error}") from error


@cache
def _limit_silence() -> None:
    """Have each request of huggingface_hub given up after HF_HUB_ETAG_TIMEOUT seconds in which nothing comes.

    Without that it waits for ever where a call names no time of its own: those that list a repository's files.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    make = _http._GLOBAL_CLIENT_FACTORY  # a notebook may have set one, with a proxy for instance

    def patient() -> Any:
        client = make()
        client.event_hooks["request"].append(_with_limit)
        return client

    set_client_factory(patient)


def _with_limit(request: Any) -> None:
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    named = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        phase: HF_HUB_ETAG_TIMEOUT if seconds is None else seconds for phase, seconds in named.items()
    }


@contextmanager
def explain_hub_errors(repo: str, revision: str, repo_type: str = "model") -> Iterator[None]:
    """Turn an error of the hub inside the block into one `UserError` with its remedy.

    From the first block on, a hub that says nothing for HF_HUB_ETAG_TIMEOUT seconds is given up.
    """
    from huggingface_hub import constants, errors, get_token

    _limit_silence()
    endpoint = shown(constants.ENDPOINT)
    page = f"{endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    group = "data" if repo_type == "dataset" else "model"
    token = "the token in use has no access" if get_token() else "no token is set"
    set_token = "set HF_TOKEN (or run `hf auth login`)"
    try:
        yield
    # GatedRepoError is a RepositoryNotFoundError, so it comes first.
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated and {token}. Accept its licence at {page} and {set_token}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{page} does not exist, or is private and {token}. Check the spelling of OWNER/NAME, or {set_token}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{page} has no revision '{revision}'. Take a branch, tag or commit it has: {group}.revision=."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"'{repo}' is not the id of a repository, OWNER/NAME: {shown(error)}.") from error
    except _away() as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{repo} at {revision} is not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE "
                "forbids a download. Unset it, or run once where there is a network and bring the cache."
            ) from error
        raise UserError(
            f"the hub at {endpoint} can't be reached ({_cause(error)}), and {repo} at {revision} is not in "
            f"its cache ({constants.HF_HUB_CACHE}). Check the network, HF_ENDPOINT and the proxy; what has arrived is "
            "kept."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        refused = f" ({token}: {set_token})" if status in (401, 403) else ""
        raise UserError(
            f"the hub at {endpoint} answered {status} for {repo} at {revision}{refused}: {shown(error)}."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {repo} does not fit in {constants.HF_HUB_CACHE}. Free some space or move the cache "
                "with HF_HOME=DIR; what has arrived is kept."
            ) from error
        if "Consistency check failed" in str(error):
            raise UserError(
                f"{repo} came incomplete: {shown(error)}. Run the same command again, it continues."
            ) from error
        raise


def shown(text: object) -> str:
    """Return what a log or an error says of the hub in one line, without the password that an address may hold."""
    return PASSWORD.sub("//…@", " ".join(str(text).split())).rstrip(".")


def _cause(error: Exception) -> str:
    """Return what went wrong with a request."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # That one says at length what is not in the cache. What it was raised from says why.
    told = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
    return shown(told) or type(told).__name__

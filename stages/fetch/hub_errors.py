"""Errors of the hub as one sentence each, with the remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from stages.errors import UserError


def unreachable() -> tuple[type[Exception], ...]:
    """Return the exceptions that mean that the hub is offline or can't be reached."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    return (OfflineModeIsEnabled, httpx.NetworkError, httpx.TimeoutException, httpx.ProxyError)


@contextmanager
def explain_hub_errors(repo: str, revision: str, repo_type: str = "model") -> Iterator[None]:
    """Turn an error of the hub inside the block into one `UserError` with its remedy."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
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
        raise UserError(f"'{repo}' is not the id of a repository, OWNER/NAME: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            f"{repo} at {revision} is not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids a "
            "download. Unset it, or run once where there is a network and bring the cache."
        ) from error
    except unreachable() as error:
        raise UserError(
            f"the hub at {constants.ENDPOINT} can't be reached ({error}), and {repo} at {revision} is not in its cache "
            f"({constants.HF_HUB_CACHE}). Check the network, HF_ENDPOINT and the proxy; what has arrived is kept."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        refused = f" ({token}: {set_token})" if status in (401, 403) else ""
        raise UserError(
            f"the hub at {constants.ENDPOINT} answered {status} for {repo} at {revision}{refused}: {error}"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {repo} does not fit in {constants.HF_HUB_CACHE}. Free some space or move the cache "
                "with HF_HOME=DIR; what has arrived is kept."
            ) from error
        if "Consistency check failed" in str(error):
            raise UserError(f"{repo} came incomplete: {error} Run the same command again, it continues.") from error
        raise

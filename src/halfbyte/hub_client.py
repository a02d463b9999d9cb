"""The model hub's client: there or not, in reach or not, and its many errors told in one line each."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from halfbyte.errors import HalfbyteError
from halfbyte.files import FULL

REACH_SECONDS = 5.0
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def require_hub(what: str) -> None:
    """Raises `HalfbyteError`, which begins with `what`, where the client is missing."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise HalfbyteError(f"{what} needs huggingface_hub; pip install 'halfbyte[hub]'")


def check_reachable(endpoint: str | None = None) -> None:
    """Ask the hub, or another `endpoint`, one short question; raises the client's error where nobody answers.

    The client itself asks an unreachable host six times, for most of a minute.
    """
    from huggingface_hub import constants, get_session

    get_session().head(endpoint or constants.ENDPOINT, timeout=REACH_SECONDS)


@contextmanager
def one_line(repository: str, doing: str) -> Iterator[None]:
    """Errors of the client in the with-block as `HalfbyteError`: the repository, what was tried, why not."""
    try:
        yield
    except HalfbyteError:
        raise
    except Exception as error:  # the network, the hub, its client and the disk each fail in ways of their own
        raise HalfbyteError(f"cannot {doing} {repository}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return "offline mode is on; unset HF_HUB_OFFLINE"
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause)
        if isinstance(cause, HFValidationError):
            return f"{_first_line(cause)}; give OWNER/NAME"
        # The client wraps what went wrong in advice of its own.
        if not isinstance(cause, (LocalEntryNotFoundError, RuntimeError)) or cause.__cause__ is None:
            break
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.errno in FULL:
        return f"{cause.strerror}; free some space"
    text = _first_line(cause or error)
    if any(kind.__name__ == "TransportError" for kind in type(cause).__mro__):
        return f"the hub does not answer ({text}); check the network, or --endpoint"
    return text


def _refusal(error: BaseException) -> str:
    """What an answer of 400 and above means."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status, said = error.response.status_code, error.server_message  # type: ignore[attr-defined]
    if isinstance(error, GatedRepoError):
        return f"access must be granted on the hub's page of it first; then {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision; give a branch, a tag or a commit"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is private; check the name, and {_LOG_IN}"
    more = f" ({' '.join(said.split())[:200]})" if said else ""
    if status == 401:
        return f"the token is not accepted{more}; {_LOG_IN}"
    if status == 403:
        return f"the token does not allow that{more}; use one that does"
    return f"the hub answers {status}{more}" + ("; try again later" if status == 429 or status >= 500 else "")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]

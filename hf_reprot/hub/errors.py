"""What the Hub's client raises, as one line that says what to do."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .privacy import redact
from .retries import is_network, retry_after, status_of


class HubError(RuntimeError):
    """The Hub, or the way to it, refused something. The message is one line and holds no token.

    Attributes:
        status: HTTP status of the answer; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def explain(error: Exception, repo_id: str, *, token: str | None, secrets: tuple[str | None, ...] = ()) -> HubError:
    """The `HubError` that tells a user what an error of the client means for a push.

    Args:
        error: What the client raised.
        repo_id: Where the push was going.
        token: The token that was used; None where there was none.
        secrets: More texts to keep out of the message.
    """
    status = status_of(error)
    message = _explanation(error, repo_id, token, status)
    return HubError(redact(" ".join(message.split()), (token, *secrets)), status)


def _explanation(error: Exception, repo_id: str, token: str | None, status: int | None) -> str:
    log_in = "run `hf auth login`, or set HF_TOKEN to a token with the right to write"
    said = getattr(error, "server_message", None) or str(error).split("\n")[-1]
    if isinstance(error, LocalTokenNotFoundError) or (token is None and status in (401, 403)):
        return f"no token for the Hub was found: {log_in}, and push again"
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} cannot be the name of a repository: give name/student, with letters, digits, -, _ and ."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push"
    if status is None and is_network(error):
        return f"the Hub cannot be reached ({type(error).__name__}): look at the network, and push again"
    if status == 412 or "precondition failed" in said.lower():
        return f"{repo_id} has changed since the commit that this push builds on: look at it, and push again"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision: {said}"
    if status == 401:
        return f"the Hub does not accept the token, or {repo_id} is not yours: {log_in}, and push again"
    if status == 403:
        if "write token" in said.lower() or _may_only_read(token):
            return f"the token may only read: {log_in}, and push again"
        return f"the token has no right to write to {repo_id}: {said}"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"there is no repository {repo_id} that the token may see"
    if status == 429:
        pause = retry_after(error)
        when = f"in {pause:,.0f} seconds" if pause is not None else "later"
        return f"the Hub takes no more requests for now (429 {said}): push again {when}"
    if status == 507:
        return f"the Hub has no room for {repo_id} (507 {said}): make some, and push again"
    if status is not None and status >= 500:
        return f"the Hub failed with {status} ({said}): push again later"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub refuses the push to {repo_id}: {status} {said}"
    if isinstance(error, ValueError):
        return f"the Hub refuses the push to {repo_id}: {error}"
    return f"the push to {repo_id} failed: {type(error).__name__}: {error}"


def _may_only_read(token: str | None) -> bool:
    """Whether the Hub knows a token as one for reading; it says "no rights" to those, too."""
    try:
        return HfApi(token=token).whoami()["auth"]["accessToken"]["role"] == "read"
    except Exception:  # an answer of another shape, or none: the Hub's own words have to do
        return False

"""Calls to the Hub that are made again where waiting helps: too many requests, a server in trouble, a lost answer."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSIENT = (429, 500, 502, 503, 504)
TRIES = 6
NETWORK_TRIES = 3  # without an answer, there is often none to come
FIRST_WAIT = 1.0  # seconds; doubled from try to try
PATIENCE = 300.0  # seconds of waiting in all


def patiently(call: Callable[[], T]) -> T:
    """What a call returns, made up to six times with pauses of 1, 2, 4, ... seconds, or of what the Hub asks for.

    The call must be one that can be made twice: an answer may get lost after the work was done.

    Raises:
        Exception: what the last try raised; at once where trying again cannot help, or where the Hub asks for a longer
            pause than five minutes in all.
    """
    waited = 0.0
    for number in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            status = status_of(error)
            if status not in TRANSIENT and not (status is None and is_network(error)):
                raise
            asked = retry_after(error)
            pause = asked if asked is not None else FIRST_WAIT * 2 ** (number - 1) * random.uniform(1, 1.25)
            last = TRIES if status is not None else NETWORK_TRIES
            if number >= last or waited + pause > PATIENCE:
                raise
            what = f"answers {status}" if status is not None else f"gives no answer ({type(error).__name__})"
            logger.warning("The Hub %s: trying again in %.0f s (%d of %d)", what, pause, number, last - 1)
            time.sleep(pause)
            waited += pause
    raise AssertionError("unreachable")


def status_of(error: Exception) -> int | None:
    """HTTP status of the answer that an error of the client stands for; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def retry_after(error: Exception) -> float | None:
    """Seconds that the Hub asks to wait (`Retry-After`, in seconds or as a date); None where it does not say."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    said = headers.get("Retry-After")
    if said is None:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return None
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def is_network(error: Exception) -> bool:
    """Whether no answer came: the client's HTTP library changes over its versions, the names of its errors less so."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "TransportError", "TimeoutException", "TimeoutError", "NetworkError"})

"""Errors over Flight, both ways: the server's error comes out of the client as the same class.

The problem object (RFC 9457) travels as ``extra_info`` where gRPC carries it and at the end of the text in
any case, because the details of an error in the middle of a stream are lost.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from doma.core.errors import (
    BadQuery,
    Cancelled,
    DomaError,
    Forbidden,
    ServiceUnavailable,
    TimedOut,
    Unauthenticated,
    from_problem,
    problem,
)

MAX_TEXT = 1500
"""Characters of a message: gRPC limits all metadata of an answer to 8 KiB."""
_MARK = "doma-error:"


def to_flight(error: DomaError) -> fl.FlightError:
    """The Flight error of a DomaError; its text begins with the code and ends with the problem object."""
    message = error.message if len(error.message) <= MAX_TEXT else error.message[:MAX_TEXT] + "…"
    brief: dict[str, Any] = {"code": error.code, "detail": message}
    if error.retry_after is not None:
        brief["retry_after"] = error.retry_after
    facts = {k: v for k, v in error.detail.items() if len(repr(v)) <= 300}
    if facts and len(repr(facts)) <= MAX_TEXT:
        brief["facts"] = facts
    # The mark stands once after the message, whatever the message holds.
    packed = json.dumps(brief).replace(_MARK, _MARK.replace("-", "\\u002d"))
    text = f"{error.code}: {message} [{_MARK}{packed}]"
    kinds: tuple[tuple[type[DomaError], type[fl.FlightError]], ...] = (
        (Unauthenticated, fl.FlightUnauthenticatedError),
        (Forbidden, fl.FlightUnauthorizedError),
        (Cancelled, fl.FlightCancelledError),
        (TimedOut, fl.FlightTimedOutError),
        (ServiceUnavailable, fl.FlightUnavailableError),
    )
    kind = next((flight for ours, flight in kinds if isinstance(error, ours)), fl.FlightServerError)
    extra = json.dumps({**problem(error), "detail": message, "facts": brief.get("facts", {})}).encode()
    return kind(text, extra if len(extra) <= 2 * MAX_TEXT else b"")


def from_flight(error: Exception) -> DomaError:
    """The DomaError that an error of the Flight client stands for."""
    _, mark, packed = str(error).rpartition(_MARK)
    if mark:
        try:
            body, _ = json.JSONDecoder().raw_decode(packed)
        except ValueError:
            body = None
        if isinstance(body, dict):
            return from_problem(body)
    text = " ".join(str(error).split())[:500]
    if isinstance(error, fl.FlightUnauthenticatedError):
        return Unauthenticated(text)
    if isinstance(error, fl.FlightUnauthorizedError):
        return Forbidden(text)
    if isinstance(error, fl.FlightCancelledError):
        return Cancelled(text)
    if isinstance(error, fl.FlightTimedOutError):
        return TimedOut(text)
    if isinstance(error, fl.FlightUnavailableError):
        return ServiceUnavailable(f"the scan service does not answer; check its address and CA file ({text})")
    if isinstance(error, pa.ArrowInvalid | pa.ArrowKeyError):
        return BadQuery(text)
    return DomaError(text)

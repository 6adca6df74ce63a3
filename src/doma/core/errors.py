"""One family of errors: each class is its row of the manual's table.

A class fixes the stable ``code``, the HTTP status, the exit code of the command line (``sysexits.h``)
and whether a retry can help. It is raised deep and answered once: the HTTP handlers write
:func:`problem`, the command line exits with ``exit``, and a client turns the answer back into the same
class with :func:`from_problem`.

Source: RFC 9457 (problem details), RFC 9110 §15 (statuses), BSD ``sysexits.h``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

Retry = Literal["no", "later", "elsewhere"]


class DomaError(Exception):
    """Something went wrong inside DOMA.

    Args:
        message: One line that names the thing, the place and the remedy.
        retry_after: Seconds after which a retry makes sense, if that is known.
        **detail: JSON-ready facts for programs (``path``, ``near``, ``scope``, …); never a secret.
    """

    code: ClassVar[str] = "internal"
    http: ClassVar[int] = 500
    exit: ClassVar[int] = 70
    retry: ClassVar[Retry] = "no"

    family: ClassVar[dict[str, type["DomaError"]]] = {}

    def __init__(self, message: str, *, retry_after: float | None = None, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.detail: dict[str, Any] = detail

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if DomaError.family.setdefault(cls.code, cls) is not cls:
            raise TypeError(f"error code {cls.code!r} is already taken")

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders (worker pools): keyword arguments must survive pickling.
        return _rebuild, (self.code, self.message, self.retry_after, self.detail)

    @property
    def title(self) -> str:
        """What this kind of error is, the same for every occurrence."""
        return (type(self).__doc__ or "").strip().splitlines()[0]


DomaError.family[DomaError.code] = DomaError


class BadRequest(DomaError):
    """The request cannot be understood."""

    code, http, exit = "bad-request", 400, 64


class BadCredential(BadRequest):
    """The credential is malformed, or there are two that differ."""

    code, http, exit = "bad-credential", 400, 77


class BadPath(BadRequest):
    """The path is not a valid name."""

    code, http, exit = "bad-path", 400, 64


class BadQuery(BadRequest):
    """The query does not make sense."""

    code, http, exit = "bad-query", 400, 65


class UnknownColumn(BadQuery):
    """A tree, branch or column does not exist in the data."""

    code, http, exit = "unknown-column", 400, 65


class LimitExceeded(DomaError):
    """The request is larger than the configured limit."""

    code, http, exit = "limit", 413, 65


class UriTooLong(DomaError):
    """The path is too long."""

    code, http, exit = "path-too-long", 414, 64


class Unauthenticated(DomaError):
    """No valid credential was given."""

    code, http, exit = "unauthenticated", 401, 77


class InvalidToken(Unauthenticated):
    """The token is not valid here."""

    code, http, exit = "invalid-token", 401, 77


class Forbidden(DomaError):
    """The credential does not allow this."""

    code, http, exit = "forbidden", 403, 77


class Refused(DomaError):
    """Nobody may do this, whatever the credential."""

    code, http, exit = "refused", 403, 64


class NotFound(DomaError):
    """The thing does not exist."""

    code, http, exit = "not-found", 404, 66


class NotAllowed(DomaError):
    """This kind of thing cannot do that."""

    code, http, exit = "method-not-allowed", 405, 64


class Conflict(DomaError):
    """The thing is in a state that does not allow this."""

    code, http, exit = "conflict", 409, 73


class OnTape(Conflict):
    """The file is only on tape; it must be staged first."""

    code, http, exit, retry = "on-tape", 409, 75, "later"


class AlreadyExists(DomaError):
    """The thing exists already."""

    code, http, exit = "already-exists", 405, 73


class PreconditionFailed(DomaError):
    """The stated version or condition does not hold."""

    code, http, exit = "precondition-failed", 412, 75


class UnsupportedType(DomaError):
    """The content type is not supported."""

    code, http, exit = "unsupported-type", 415, 65


class RangeNotSatisfiable(DomaError):
    """None of the asked bytes exist."""

    code, http, exit = "range-not-satisfiable", 416, 65


class ChecksumMismatch(DomaError):
    """The bytes are not the announced ones."""

    code, http, exit, retry = "checksum-mismatch", 400, 65, "later"


class WrongSize(DomaError):
    """Fewer or more bytes came than were announced."""

    code, http, exit, retry = "wrong-size", 422, 65, "later"


class CorruptFile(DomaError):
    """The file's content cannot be read as what it should be."""

    code, http, exit = "corrupt-file", 422, 65


class Unsupported(DomaError):
    """This is not offered."""

    code, http, exit = "unsupported", 501, 69


class TooManyRequests(DomaError):
    """Too much was asked at once."""

    code, http, exit, retry = "busy", 429, 75, "later"


class StorageFull(DomaError):
    """There is no space left."""

    code, http, exit, retry = "storage-full", 507, 73, "elsewhere"


class StorageUnavailable(DomaError):
    """A storage endpoint did not answer."""

    code, http, exit, retry = "storage-unavailable", 503, 75, "elsewhere"


class OriginFailed(DomaError):
    """An origin gave a wrong or broken answer."""

    code, http, exit, retry = "origin-failed", 502, 75, "elsewhere"


class Replaced(OriginFailed):
    """The origin has another version now."""

    code = "replaced"


class DigestNotReady(DomaError):
    """The digest that was asked for is still being computed."""

    code, http, exit, retry = "digest-not-ready", 503, 75, "later"


class NotCached(DomaError):
    """The bytes are not in the cache and the client allows no fetch."""

    code, http, exit, retry = "not-cached", 504, 75, "elsewhere"


class TimedOut(DomaError):
    """Something took longer than its limit."""

    code, http, exit, retry = "timed-out", 504, 75, "later"


class IssuerUnavailable(DomaError):
    """The keys of a trusted issuer cannot be had."""

    code, http, exit, retry = "issuer-unavailable", 503, 75, "later"


class PartlyFailed(DomaError):
    """Some parts of a collection could not be done.

    ``detail["parts"]`` has the problem object (:func:`problem`) of each, by its path.
    """

    code, http, exit, retry = "partly-failed", 502, 75, "later"


class ServiceUnavailable(DomaError):
    """A service is not there or is shutting down."""

    code, http, exit, retry = "service-unavailable", 503, 75, "later"


class Cancelled(DomaError):
    """The work was cancelled."""

    code, http, exit = "cancelled", 409, 75


class ConfigError(DomaError):
    """The configuration is wrong."""

    code, http, exit = "config", 500, 78


class MissingExtra(DomaError):
    """An optional dependency is not installed."""

    code, http, exit = "missing-extra", 501, 69


class AlreadyRunning(DomaError):
    """Another process holds this home."""

    code, http, exit = "already-running", 409, 73


class PortInUse(DomaError):
    """The address to listen on is taken."""

    code, http, exit = "port-in-use", 409, 73


class Inconsistent(DomaError):
    """Two ways to the same answer disagree."""

    code, http, exit = "inconsistent", 500, 65


def problem(error: DomaError) -> dict[str, Any]:
    """The RFC 9457 object of an error: type, title, status, detail, and ours: code, retry, facts.

    >>> problem(NotFound("/site/a: no such file", path="/site/a"))["code"]
    'not-found'
    """
    body: dict[str, Any] = {
        "type": f"urn:doma:error:{error.code}",
        "title": error.title,
        "status": error.http,
        "detail": error.message,
        "code": error.code,
        "retry": error.retry,
    }
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    if error.detail:
        body["facts"] = error.detail
    return body


def from_problem(body: Mapping[str, Any], status: int = 500) -> DomaError:
    """The error that a problem answer stands for; an unknown code becomes the nearest by status.

    >>> raise from_problem({"code": "not-found", "detail": "/a: gone"})
    Traceback (most recent call last):
    doma.core.errors.NotFound: /a: gone
    """
    code, text = body.get("code"), str(body.get("detail") or body.get("message") or f"HTTP status {status}")
    kind = DomaError.family.get(code) if isinstance(code, str) else None
    if kind is None:
        kind = next((c for c in DomaError.family.values() if c.http == status), DomaError)
    after, facts = body.get("retry_after"), body.get("facts")
    safe = {k: v for k, v in facts.items() if k.isidentifier()} if isinstance(facts, dict) else {}
    return _rebuild(kind.code, text, float(after) if isinstance(after, int | float) else None, safe)


def _rebuild(code: str, message: str, retry_after: float | None, detail: dict[str, Any]) -> DomaError:
    error = DomaError.family.get(code, DomaError)(message, retry_after=retry_after)
    error.detail = detail
    return error

"""Error codes of root:// and our errors, both ways. No I/O.

Source: xrootd's ``XProtocol.hh`` (``XErrorCode``); §2 of the project's root:// contract.
"""

from doma.core.errors import (
    AlreadyExists,
    BadCredential,
    BadRequest,
    Cancelled,
    ChecksumMismatch,
    Conflict,
    CorruptFile,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotAllowed,
    NotCached,
    NotFound,
    OnTape,
    OriginFailed,
    PreconditionFailed,
    RangeNotSatisfiable,
    Refused,
    StorageFull,
    StorageUnavailable,
    TimedOut,
    TooManyRequests,
    Unauthenticated,
    Unsupported,
    UriTooLong,
    WrongSize,
)

FS_ERROR, BAD_REQUEST, UNSUPPORTED, NO_ATTRIBUTE = 3005, 3006, 3013, 3027
"""Codes that are told apart by more than what they mean to us."""
BAD_ARGUMENT, TOO_LONG, FILE_NOT_OPEN, IO_ERROR, NO_MEMORY = 3000, 3002, 3004, 3007, 3008
NOT_FILE, IS_DIRECTORY, EXISTS, READ_ONLY, TLS_REQUIRED = 3015, 3016, 3018, 3025, 3028
"""Codes that a server says and no error class of ours stands for."""

KINDS: dict[int, type[DomaError]] = {
    3000: BadRequest,
    3001: BadRequest,
    3002: LimitExceeded,
    3003: Conflict,
    3004: StorageUnavailable,
    3005: OriginFailed,
    3006: BadRequest,
    3007: OriginFailed,
    3008: StorageUnavailable,
    3009: StorageFull,
    3010: Forbidden,
    3011: NotFound,
    3012: OriginFailed,
    3013: Unsupported,
    3014: StorageUnavailable,
    3015: Conflict,
    3016: Conflict,
    3017: Cancelled,
    3018: AlreadyExists,
    3019: CorruptFile,
    3020: Conflict,
    3021: StorageFull,
    3022: Unauthenticated,
    3023: Unauthenticated,
    3024: TooManyRequests,
    3025: Forbidden,
    3026: BadRequest,
    3027: NotFound,
    3028: Unauthenticated,
    3029: StorageUnavailable,
    3030: Unauthenticated,
    3031: Conflict,
    3032: Conflict,
    3033: TooManyRequests,
    3034: TimedOut,
    3035: NotCached,
}
"""Code to what it means."""

_CODES: dict[type[DomaError], int] = {
    PreconditionFailed: 3032,
    Conflict: 3032,
    StorageUnavailable: 3014,
    OriginFailed: 3012,
    NotFound: 3011,
    Unauthenticated: 3030,
    Forbidden: 3010,
    BadRequest: 3000,
    StorageFull: 3009,
    TooManyRequests: 3024,
    BadCredential: 3030,
    ChecksumMismatch: 3019,
    NotAllowed: 3025,
    RangeNotSatisfiable: 3000,
    Refused: 3010,
    UriTooLong: 3002,
    WrongSize: 3026,
    OnTape: 3005,
}


def error_of(code: int, text: str, place: str, secret: str | None = None) -> DomaError:
    """The error that an answer stands for.

    Args:
        code: As the server sent it.
        text: Likewise; only its printable part is repeated.
        place: What was asked of whom, to begin the message with.
        secret: A token that must not be repeated, should the server have quoted it.
    """
    if secret:
        text = text.replace(secret, "***")
    said = "".join(c for c in text[:300] if c.isprintable() and c not in "<>").strip()
    error = KINDS.get(code, OriginFailed)(f"{place}: the server says {said or 'nothing'} (error {code})")
    error.detail["xrootd"] = code
    return error


def refusal(code: int, text: str) -> DomaError:
    """An error that is to be answered under this very code.

    >>> code_of(refusal(READ_ONLY, "/a: cannot be written to"))
    3025
    """
    return KINDS[code](text, xrootd=code)


def code_of(error: DomaError) -> int:
    """The code under which a server answers an error: the one it came with, its own, its nearest parent's.

    >>> code_of(NotFound("/a: no such file")), code_of(DomaError("/a: broken"))
    (3011, 3012)
    """
    known = error.detail.get("xrootd")
    if isinstance(known, int):
        return known
    return next((_OURS[kind] for kind in type(error).__mro__ if kind in _OURS), 3012)


_OURS = {**{kind: code for code, kind in reversed(KINDS.items())}, **_CODES}

"""What S3 says and hears in XML. What clients send is read as hostile input: no DTD, no entities, bounded.

Source: Amazon S3 API Reference (2006-03-01), error codes included.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from doma.core.errors import (
    BadPath,
    BadRequest,
    ChecksumMismatch,
    Conflict,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    Refused,
    StorageFull,
    TooManyRequests,
    Unauthenticated,
    Unsupported,
    UriTooLong,
    WrongSize,
)

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
LARGEST = 4 << 20
"""Bytes of a document that is read."""
MOST_TAGS = 250_000
"""Tags of one: a part has some ten."""
MOST_PARTS = 10_000
MOST_KEYS = 1000

_CODES: Sequence[tuple[type[DomaError], str, int]] = (
    (NotFound, "NoSuchKey", 404),
    (Unauthenticated, "AccessDenied", 403),
    (Forbidden, "AccessDenied", 403),
    (Refused, "AccessDenied", 403),
    (UriTooLong, "KeyTooLongError", 400),
    (BadPath, "InvalidArgument", 400),
    (BadRequest, "InvalidRequest", 400),
    (NotAllowed, "MethodNotAllowed", 405),
    (PreconditionFailed, "PreconditionFailed", 412),
    (RangeNotSatisfiable, "InvalidRange", 416),
    (ChecksumMismatch, "BadDigest", 400),
    (WrongSize, "IncompleteBody", 400),
    (LimitExceeded, "EntityTooLarge", 400),
    (Conflict, "OperationAborted", 409),
    (Unsupported, "NotImplemented", 501),
    (TooManyRequests, "SlowDown", 503),
    (StorageFull, "InsufficientStorage", 507),
)
_STATUS = {
    "NoSuchBucket": 404, "NoSuchUpload": 404, "BucketNotEmpty": 409, "BucketAlreadyOwnedByYou": 409,
    "SignatureDoesNotMatch": 403, "InvalidObjectState": 403,
}  # fmt: skip


def code_of(error: DomaError) -> tuple[str, int]:
    """S3's code and status of an error; ``detail["s3"]`` names a code of its own.

    >>> code_of(NotFound("x")), code_of(Forbidden("x", s3="InvalidAccessKeyId"))
    (('NoSuchKey', 404), ('InvalidAccessKeyId', 403))
    """
    code, status = next(
        ((code, status) for kind, code, status in _CODES if isinstance(error, kind)),
        ("ServiceUnavailable", 503) if error.retry != "no" else ("InternalError", 500),
    )
    named = error.detail.get("s3")
    return (named, _STATUS.get(named, status)) if isinstance(named, str) else (code, status)


def refusal(error: DomaError, resource: str, request_id: str) -> str:
    """The ``Error`` element."""
    return element(
        "Error",
        [
            ("Code", code_of(error)[0]),
            ("Message", error.message),
            ("Resource", resource),
            ("RequestId", request_id),
        ],
    )


def element(name: str, content: Iterable[tuple[str, str]], *, namespace: bool = False) -> str:
    """An element with simple children.

    >>> element("A", [("B", "<"), ("C", "")])
    '<A><B>&lt;</B><C></C></A>'
    """
    opened = f'{name} xmlns="{NAMESPACE}"' if namespace else name
    return f"<{opened}>{''.join(tag(n, v) for n, v in content)}</{name}>"


def tag(name: str, text: str) -> str:
    """One element with text; what XML cannot hold becomes U+FFFD."""
    if not text.isprintable():
        text = "".join(
            c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "\ufffd"
            for c in text
        )
    return f"<{name}>{escape(text)}</{name}>"


def instant(seconds: float) -> str:
    """An instant as listings say it.

    >>> instant(0.0)
    '1970-01-01T00:00:00.000Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def parts_of(body: bytes) -> list[tuple[int, str]]:
    """Number and ETag of the parts that a CompleteMultipartUpload names, ascending.

    Raises:
        BadRequest: not that document; too many, none, or not in order.
    """
    found: list[tuple[int, str]] = []
    for part in _children(_root(body, "CompleteMultipartUpload"), "Part", MOST_PARTS):
        number, tag = _text(part, "PartNumber"), _text(part, "ETag")
        if not (number.isascii() and number.isdigit() and len(number) < 6 and 1 <= int(number) <= MOST_PARTS):
            raise _malformed(f"a PartNumber must be 1 to {MOST_PARTS}")
        if found and int(number) <= found[-1][0]:
            raise BadRequest("CompleteMultipartUpload: parts must ascend", s3="InvalidPartOrder")
        found.append((int(number), tag.strip().strip('"')))
    if not found:
        raise _malformed("no part is named")
    return found


def keys_of(body: bytes) -> tuple[list[tuple[str, str]], bool]:
    """Key and ETag (or nothing) of each object that a DeleteObjects names, and whether to be quiet.

    Raises:
        BadRequest: not that document, too many or none.
    """
    root = _root(body, "Delete")
    found = []
    for item in _children(root, "Object", MOST_KEYS):
        if _text(item, "VersionId", "null") != "null":
            raise Unsupported("DeleteObjects: versions are not kept here; leave VersionId out")
        found.append((_text(item, "Key"), _text(item, "ETag", "").strip('"')))
    if not found:
        raise _malformed("no object is named")
    return found, _text(root, "Quiet", "false") == "true"


def _root(body: bytes, name: str) -> Element:
    if body.count(b"<") > MOST_TAGS:
        raise _malformed("it holds too many elements")
    try:
        root = fromstring(body, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except (ParseError, ValueError, LookupError) as e:  # defused refusals are ValueErrors
        text = str(e) if isinstance(e, ParseError) else "document types and entities are not accepted"
        raise _malformed(text) from e
    assert isinstance(root, Element)
    if _local(root) != name:
        raise _malformed(f"it must be a {name} element")
    return root


def _children(root: Element, name: str, most: int) -> Iterator[Element]:
    count = 0
    for child in root:
        if _local(child) == name:
            count += 1
            if count > most:
                raise _malformed(f"it may name at most {most} of {name}")
            yield child


def _text(parent: Element, name: str, default: str | None = None) -> str:
    for child in parent:
        if _local(child) == name:
            return child.text or ""
    if default is None:
        raise _malformed(f"{name} is missing")
    return default


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _malformed(why: str) -> BadRequest:
    return BadRequest(f"the XML is not what it should be: {why}", s3="MalformedXML")

"""Byte ranges and conditional requests: from header text to what must be answered.

Headers come as text under lower-case names; a version is the text between the quotes of the ETag.

Source: RFC 9110 §13 (conditions), §14 (ranges); rows R1-R24 of the range table in cache.md §3.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from operator import ge

from doma.core.errors import BadRequest, PreconditionFailed, RangeNotSatisfiable

LIMIT = 1024
"""Ranges in one request (davix asks for that many at most)."""
GENEROUS = 1 << 20
"""Ranges that sum up to no more than this are served even when they repeat the file often."""

Span = tuple[int, int]
"""Bytes ``[start, stop)``."""

_PLAIN = re.compile(r"bytes=\d{1,18}-\d{1,18}(?:, ?\d{1,18}-\d{1,18})*", re.ASCII)
_SINGLE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})", re.ASCII)
_ONE = re.compile(r"[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII)
_ETAG = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?:,|$)')
_HUGE = 1 << 62


def parse(header: str, size: int) -> list[Span] | None:
    """The satisfiable ranges of a ``Range`` header in the asked order; None when it must be ignored.

    Ignored are a wrong syntax or unit, a suffix of an empty file, and sets that would send the file more
    than twice over (RFC 9110 §14.2), unless they are small.

    Args:
        header: The field value, ``bytes=0-9, -5``.
        size: Bytes of the file.

    Raises:
        RangeNotSatisfiable: no asked byte exists; ``detail["size"]`` is the size.
        BadRequest: more than :data:`LIMIT` ranges.

    >>> parse("bytes=0-0,-1", 10), parse("bytes=5-", 10), parse("bytes=9-5", 10)
    ([(0, 1), (9, 10)], [(5, 10)], None)
    """
    one = _SINGLE.fullmatch(header)
    if one is not None:
        start, stop = int(one[1]), int(one[2]) + 1
        if stop <= start:
            return None
        spans = [(start, min(stop, size))] if start < size else []
    elif _PLAIN.fullmatch(header) is not None:
        # Nearly every vector read: no open ends, so the numbers alone say it all, at a third of the cost.
        numbers = list(map(int, header[6:].replace("-", ",").split(",")))
        starts, stops = numbers[::2], [last + 1 for last in numbers[1::2]]
        _check_count(len(starts))
        if any(map(ge, starts, stops)):
            return None
        spans = list(zip(starts, stops, strict=True))
        if max(stops) > size:
            spans = [(start, min(stop, size)) for start, stop in spans if start < size]
    else:
        found = _parse_any(header, size)
        if found is None:
            return None
        spans = found
    if not spans:
        raise RangeNotSatisfiable(
            f"Range {header[:80]}: the file has {size} bytes; ask within them", size=size
        )
    if len(spans) > 1:
        total = sum([stop - start for start, stop in spans])
        if total > max(2 * size, GENEROUS):
            return None
    return spans


def _parse_any(header: str, size: int) -> list[Span] | None:
    """The satisfiable ranges in any syntax; None to ignore the header."""
    unit, sign, rest = header.partition("=")
    if not sign or unit.strip().lower() != "bytes":
        return None
    items = [item for item in rest.split(",") if item.strip(" \t")]
    _check_count(len(items))
    spans: list[Span] = []
    unsayable = not items
    for item in items:
        found = _ONE.fullmatch(item)
        if found is None:
            return None
        first, last = found.groups()
        if first:
            start, stop = _number(first), _number(last) + 1 if last else _HUGE
            if stop <= start:
                return None
        elif last:
            start, stop = max(0, size - _number(last)), size
            unsayable |= not size and start == 0 and bool(last.strip("0"))
        else:
            return None
        if start < size:
            spans.append((start, min(stop, size)))
    return None if unsayable else spans


def _check_count(count: int) -> None:
    if count > LIMIT:
        raise BadRequest(f"Range: {count} ranges in one request; ask for at most {LIMIT}")


def _number(digits: str) -> int:
    """A decimal number; beyond 2**62 only that it is huge matters."""
    digits = digits.lstrip("0")
    return _HUGE - 1 if len(digits) > 18 else int(digits or "0")


def content_range(start: int, stop: int, size: int) -> str:
    """The ``Content-Range`` value of the bytes ``[start, stop)``.

    >>> content_range(0, 1, 10)
    'bytes 0-0/10'
    """
    return f"bytes {start}-{stop - 1}/{size}"


def parts(
    spans: Sequence[Span], size: int, content_type: str, boundary: str
) -> tuple[list[bytes], bytes, int]:
    """The frame of a ``multipart/byteranges`` body: a head before each span, the tail, the total length.

    Args:
        spans: What is sent, in order.
        size: Bytes of the file.
        content_type: Of each part.
        boundary: Text that does not occur in the content by chance.

    >>> heads, tail, total = parts([(0, 1), (8, 10)], 10, "text/plain", "X")
    >>> total == sum(map(len, heads)) + len(tail) + 3
    True
    """
    before = f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: bytes ".encode()
    between = b"\r\n" + before
    after = b"/%d\r\n\r\n" % size
    heads = [b"%s%d-%d%s" % (between, start, stop - 1, after) for start, stop in spans]
    heads[0] = heads[0][2:]
    tail = f"\r\n--{boundary}--\r\n".encode()
    total = sum(map(len, heads)) + len(tail) + sum([stop - start for start, stop in spans])
    return heads, tail, total


def http_date(seconds: float) -> str:
    """The HTTP form of an instant in Unix seconds.

    >>> http_date(784111777.9)
    'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    return formatdate(int(seconds), usegmt=True)


def parse_date(text: str) -> float | None:
    """Unix seconds of an HTTP date; None when it is none.

    >>> parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), parse_date("yesterday")
    (784111777.0, None)
    """
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


def tags(header: str) -> list[tuple[bool, str]] | None:
    """The entity tags of a field as (weak, version); None when the syntax is wrong.

    >>> tags('"a", W/"b"'), tags("a")
    ([(False, 'a'), (True, 'b')], None)
    """
    found, at = [], 0
    header = header.strip()
    while at < len(header):
        one = _ETAG.match(header, at)
        if one is None:
            return None
        found.append((bool(one[1]), one[2]))
        at = one.end()
    return found or None


def not_modified(headers: Mapping[str, str], path: str, version: str | None, modified: float | None) -> bool:
    """Whether a read is answered 304, in the order of RFC 9110 §13.2.2.

    Args:
        headers: Of the request.
        path: For the message.
        version: Of what is there; None: nothing.
        modified: Its time in Unix seconds.

    Raises:
        PreconditionFailed: ``If-Match`` or ``If-Unmodified-Since`` does not hold.
    """
    check_write(headers, path, version, modified, reading=True)
    asked = headers.get("if-none-match")
    if asked is not None:
        return version is not None and _any(asked, version, weak=True)
    since = parse_date(headers["if-modified-since"]) if "if-modified-since" in headers else None
    return since is not None and modified is not None and int(modified) <= since


def check_write(
    headers: Mapping[str, str],
    path: str,
    version: str | None,
    modified: float | None,
    *,
    reading: bool = False,
) -> None:
    """Refuse a change whose conditions do not hold now; the store checks again when it publishes.

    Args:
        headers: Of the request.
        path: For the message.
        version: Of what is there; None: nothing.
        modified: Its time in Unix seconds.
        reading: Leave ``If-None-Match`` to the caller (304 instead of 412).

    Raises:
        PreconditionFailed: a condition does not hold.
    """
    there = f"its version is {version!r}" if version is not None else "it does not exist"
    asked = headers.get("if-match")
    if asked is not None:
        if version is None or not _any(asked, version, weak=False):
            raise PreconditionFailed(f"{path}: If-Match does not hold, {there}; look at it again", path=path)
    elif "if-unmodified-since" in headers:
        since = parse_date(headers["if-unmodified-since"])
        if since is not None and modified is not None and int(modified) > since:
            raise PreconditionFailed(
                f"{path}: it was modified {http_date(modified)}, after If-Unmodified-Since; look at it again",
                path=path,
            )
    asked = None if reading else headers.get("if-none-match")
    if asked is not None and version is not None and _any(asked, version, weak=True):
        raise PreconditionFailed(f"{path}: If-None-Match does not hold, {there}", path=path)


def range_applies(if_range: str | None, version: str, modified: float) -> bool:
    """Whether ``Range`` counts: no ``If-Range``, or one that names just this content.

    >>> range_applies('"v1"', "v1", 0.0), range_applies('W/"v1"', "v1", 0.0)
    (True, False)
    """
    if if_range is None:
        return True
    named = tags(if_range)
    if named is not None:
        return named == [(False, version)]
    since = parse_date(if_range)
    return since is not None and since == int(modified)


def _any(header: str, version: str, *, weak: bool) -> bool:
    """Whether a list of entity tags names this version; ``*`` names every one."""
    if header.strip() == "*":
        return True
    return any(text == version and (weak or not is_weak) for is_weak, text in tags(header) or ())

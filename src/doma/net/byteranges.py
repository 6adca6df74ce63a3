"""What a server says it sends: ``Content-Range`` and ``multipart/byteranges``, read strictly.

Source: RFC 9110 §14.4, §14.6; RFC 2046 §5.1.1 for the boundary.
"""

import re
from collections.abc import Sequence
from email.message import Message

from doma.core.errors import OriginFailed
from doma.net.sinks import Head

_RANGE = re.compile(r"bytes[ \t]+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII | re.IGNORECASE)
_PART_HEAD = 4096


def content_range(text: str) -> tuple[int, int, int | None] | None:
    """Start, stop and, if told, the whole size; None when it is no valid range.

    >>> content_range("bytes 0-99/1000"), content_range("bytes 5-6/*"), content_range("bytes 9-3/10")
    ((0, 100, 1000), (5, 7, None), None)
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    start, stop = int(found[1]), int(found[2]) + 1
    total = None if found[3] == "*" else int(found[3])
    return (start, stop, total) if start < stop and (total is None or stop <= total) else None


def collect(head: Head, body: bytes, ranges: Sequence[tuple[int, int]], url: str) -> list[memoryview]:
    """The bytes of each asked range out of a 206 answer, whether one part or many, merged or not.

    Raises:
        OriginFailed: a range is missing or the body is malformed.
    """
    whole = memoryview(body)
    if head.get("content-type").lower().startswith("multipart/byteranges"):
        parts = _parts(head.get("content-type"), body, url)
    else:
        found = content_range(head.get("content-range"))
        if found is None or found[1] - found[0] != len(body):
            raise OriginFailed(
                f"{url}: the Content-Range {head.get('content-range')!r} does not fit the body"
            )
        parts = [(found[0], found[1], whole)]
    found_parts = []
    for i, (start, stop) in enumerate(ranges):
        # Parts mostly come as asked, one for one: look there first.
        found_parts.append(_cut(parts[i : i + 1] + parts, start, stop, url))
    return found_parts


def _cut(parts: Sequence[tuple[int, int, memoryview]], start: int, stop: int, url: str) -> memoryview:
    for first, last, data in parts:
        if first <= start and stop <= last:
            return data[start - first : stop - first]
    raise OriginFailed(f"{url}: bytes {start}-{stop - 1} were asked for and did not come")


def _parts(content_type: str, body: bytes, url: str) -> list[tuple[int, int, memoryview]]:
    """Start, stop and bytes of each part. Lengths come from ``Content-Range``, never from a search."""
    broken = OriginFailed(f"{url}: the multipart/byteranges body is malformed")
    message = Message()
    message["content-type"] = content_type
    boundary = str(message.get_param("boundary") or "")
    if not 0 < len(boundary) <= 200 or not boundary.isascii():
        raise broken
    mark, whole = b"--" + boundary.encode(), memoryview(body)
    parts: list[tuple[int, int, memoryview]] = []
    at = body.find(mark)
    while at >= 0:
        at += len(mark)
        if body[at : at + 2] == b"--":
            return parts
        end = body.find(b"\r\n\r\n", at, at + _PART_HEAD)
        if end < 0:
            raise broken
        found = None
        for line in body[at:end].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-range":
                found = content_range(value.decode("latin-1"))
        if found is None:
            raise broken
        first = end + 4
        last = first + found[1] - found[0]
        if body[last : last + 2 + len(mark)] != b"\r\n" + mark:
            raise broken
        parts.append((found[0], found[1], whole[first:last]))
        at = last + 2
    raise broken

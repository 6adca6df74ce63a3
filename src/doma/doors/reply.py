"""What a read of a file is answered with: status, headers, which bytes. Pure; both roads use it.

Source: rules W2, W4, W23, W36-W38 of the storage contract; rows R1-R24 of the cache contract.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from doma.core import ranges
from doma.core.checksum import digest_header, repr_digest_header, wanted
from doma.core.ranges import Span
from doma.store.protocol import Locality, Stat

OPAQUE = "application/octet-stream"

_TYPES = {
    # Nothing that a browser would run: the files are other people's, the page they open in is ours.
    ".csv": "text/csv; charset=utf-8",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".log": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body is ``frames[0] bytes(spans[0]) frames[1] bytes(spans[1]) … tail``."""

    status: int
    headers: Headers
    spans: Sequence[Span] = ()
    frames: Sequence[bytes] = ()
    """What goes before each span of a multipart body; empty for a plain one."""
    tail: bytes = b""


@lru_cache(maxsize=1024)
def date(seconds: int) -> str:
    """The HTTP form of an instant; files come by the hundred of one second.

    >>> date(784111777)
    'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    return ranges.http_date(seconds)


def content_type(path: str) -> str:
    """The media type that a name says, else an opaque one.

    >>> content_type("/a/b.json"), content_type("/a/b.root"), content_type("/a/x.html")
    ('application/json', 'application/octet-stream', 'application/octet-stream')
    """
    name = path[path.rfind("/") + 1 :]
    return _TYPES.get(name[name.rfind(".") :].lower(), OPAQUE) if "." in name else OPAQUE


def validators(stat: Stat, want: Iterable[str] = ()) -> Headers:
    """The headers that describe the content whatever part of it is sent."""
    headers = [("ETag", f'"{stat.version}"'), *kept(stat)]
    digest = digest_header(stat.checksums, want)
    if digest is not None:
        headers.append(("Digest", digest))
    representation = repr_digest_header(stat.checksums, want)
    if representation:
        headers.append(("Repr-Digest", representation))
    return headers


def kept(stat: Stat) -> Headers:
    """Those of them that say nothing of its bytes: since when it is there, and how it is kept."""
    headers = [("Last-Modified", date(int(stat.modified))), ("Accept-Ranges", "bytes")]
    if stat.locality is not Locality.DISK:
        headers.append(("X-Locality", stat.locality))
    return headers


def reply(
    method: str, asked: Mapping[str, str], stat: Stat, extra: Mapping[str, str], boundary: Callable[[], str]
) -> Reply:
    """The answer to GET or HEAD of a file.

    Args:
        method: ``GET`` or ``HEAD``.
        asked: Request headers under lower-case names.
        stat: The version that will be read.
        extra: Headers of the store (``Age``, ``Cache-Status``).
        boundary: Gives a random text for a multipart body.

    Raises:
        PreconditionFailed, RangeNotSatisfiable, BadRequest: see :mod:`doma.core.ranges`.
    """
    want = wanted(asked.get("want-digest"), asked.get("want-repr-digest"))
    headers = [*validators(stat, want), *extra.items()]
    if ranges.not_modified(asked, stat.path, stat.version, stat.modified):
        return Reply(304, headers)
    kind = content_type(stat.path)
    header = asked.get("range") if method == "GET" else None
    spans = None
    if header is not None and ranges.range_applies(asked.get("if-range"), stat.version, stat.modified):
        spans = ranges.parse(header, stat.size)
    if spans is None:
        whole = [("Content-Type", kind), ("Content-Length", str(stat.size))]
        return Reply(200, whole + headers, [(0, stat.size)] if stat.size and method == "GET" else [])
    if len(spans) == 1:
        start, stop = spans[0]
        part = [
            ("Content-Type", kind),
            ("Content-Length", str(stop - start)),
            ("Content-Range", ranges.content_range(start, stop, stat.size)),
        ]
        return Reply(206, part + headers, spans)
    mark = boundary()
    frames, tail, total = ranges.parts(spans, stat.size, kind, mark)
    many = [
        ("Content-Type", f"multipart/byteranges; boundary={mark}"),
        ("Content-Length", str(total)),
    ]
    return Reply(206, many + headers, spans, frames, tail)

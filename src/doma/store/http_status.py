"""What an HTTP answer means for a store: our errors for its statuses, a ``Stat`` for its headers."""

import hashlib
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from doma.core.checksum import read_digests
from doma.core.errors import (
    BadRequest,
    Conflict,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotAllowed,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageFull,
    StorageUnavailable,
    TimedOut,
    TooManyRequests,
    Unauthenticated,
    Unsupported,
    UriTooLong,
)
from doma.core.url import redacted
from doma.net.byteranges import content_range
from doma.net.client import Response
from doma.net.sinks import Head
from doma.store.protocol import Stat

_BY_STATUS: dict[int, type[DomaError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: NotAllowed,
    409: Conflict,
    410: NotFound,
    412: PreconditionFailed,
    413: LimitExceeded,
    414: UriTooLong,
    416: RangeNotSatisfiable,
    423: Conflict,
    429: TooManyRequests,
    501: Unsupported,
    503: StorageUnavailable,
    504: TimedOut,
    507: StorageFull,
}
_ETAG = re.compile(r'"([\x21\x23-\x7e]+)"')
_TEXT = 300


async def refused(response: Response, path: str, secret: str | None = None, *, method: str = "") -> DomaError:
    """The error that an answer stands for; its body is read, so the connection can be kept.

    Args:
        response: With a status that was not hoped for.
        path: In the store.
        secret: A token that must not be repeated, should the server have quoted it.
        method: What was asked; with it the message names the URL in full, for those who know no path.
    """
    try:
        said = (await response.read(64 << 10)).decode("utf-8", "replace")
    except DomaError:
        said = ""
    line = next((part.strip() for part in said.splitlines() if part.strip()), "")
    if secret:
        line = line.replace(secret, "***")
    text = "".join(c for c in line[:_TEXT] if c.isprintable() and c not in "<>")
    kind = _BY_STATUS.get(response.status, OriginFailed)
    # A server of our own says more exactly what it means, within the same status.
    known = DomaError.family.get(response.get("x-error-code"))
    if known is not None and known.http == response.status:
        kind = known
    after = response.get("retry-after")
    wait = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else None
    where = urlsplit(redacted(response.url))
    place = f"{path}: {where.scheme}://{where.netloc}"
    if method:
        place = f"{path} {where.scheme}://{where.netloc}{where.path}"
    place += f" answered {response.status}" + (f" to {method}" if method else "")
    return kind(f"{place}: {text}" if text else place, retry_after=wait, status=response.status)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server says about a file and about how long to believe it."""

    stat: Stat | None
    """None: it still has the version that was asked about (304)."""
    cache_control: str = ""
    """As sent; all fields joined."""
    age: float = 0.0
    """Seconds for which caches on the way have held the answer."""
    date: float = 0.0
    """When the server made the answer, Unix seconds by its own clock; 0: not said."""
    duplicates: tuple[str, ...] = ()
    """URLs of the same file elsewhere, as the server says."""


def version_of(head: Head, size: int) -> str:
    """The strongest validator that the headers offer.

    A strong ETag is taken as it is. Without one, what there is (weak ETag, date) stands together with
    the size: enough to notice most changes, and marked so that it is never sent as an ETag.
    """
    etag, date = head.get("etag").strip(), head.get("last-modified").strip()
    if found := _ETAG.fullmatch(etag):
        return found[1]
    known = hashlib.sha256(f"{etag}|{date}".encode()).hexdigest()[:16] if etag or date else "none"
    return f"weak.{known}.{size:x}"


def says_version(head: Head) -> bool:
    """Whether the headers tell one version from another; XRootD's to HEAD and GET do not, PROPFIND does."""
    return bool(head.get("etag").strip() or head.get("last-modified").strip())


def is_strong(version: str) -> bool:
    """Whether a version was an ETag and may be sent as one."""
    return not version.startswith("weak.")


def modified_of(text: str) -> float:
    """Unix seconds of an HTTP date; 0 if there is none or it is wrong."""
    try:
        return parsedate_to_datetime(text).timestamp() if text else 0.0
    except (ValueError, OverflowError):
        return 0.0


def stat_of(head: Head, path: str, size: int) -> Stat:
    """A file as the headers of HEAD or GET describe it."""
    return Stat(
        path,
        size,
        version_of(head, size),
        modified_of(head.get("last-modified")),
        checksums=read_digests(head.fields),
    )


def whole_of(answer: Response) -> int:
    """The size of the file of which a range came. Raises OriginFailed."""
    span = content_range(answer.get("content-range"))
    if span is None or span[2] is None:
        raise OriginFailed(f"{answer.url.partition('?')[0]}: sends a range and does not tell the size")
    return span[2]


def directory_of(path: str, answer: Response) -> Stat:
    """A directory as an answer describes it."""
    modified = modified_of(answer.get("last-modified"))
    return Stat(path, 0, version_of(answer.head, 0), modified, is_dir=True)

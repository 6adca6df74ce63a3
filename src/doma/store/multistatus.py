"""What a WebDAV server says of its files: the answer to PROPFIND, read as it arrives.

Only local names count (servers disagree on the namespaces), only properties under a 200 status. A document
with a DTD or an entity is refused, and so is one that grows beyond its bounds.

Source: RFC 4918 §9.1, §14; rules W31-W35 of the storage contract.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import DefusedXMLParser  # type: ignore[import-untyped]

from doma.core.errors import BadPath, OriginFailed, UriTooLong
from doma.core.paths import normalise
from doma.net.sinks import Head
from doma.store.http_status import stat_of
from doma.store.protocol import Stat

MAX_TEXT = 64 << 10
"""Characters of one property."""
MAX_DEPTH = 32
MAX_BYTES = 1 << 30
"""Of one document: some million entries."""

_KEPT = {"getcontentlength", "getlastmodified", "getetag", "checksums", "iscollection"}


@dataclass(slots=True)
class Resource:
    """One ``response`` element."""

    href: str = ""
    is_dir: bool = False
    properties: dict[str, str] = field(default_factory=dict)


class Multistatus:
    """An incremental reader.

    Args:
        url: For messages.
        take: Gets each resource when its element is complete.
    """

    def __init__(self, url: str, take: Callable[[Resource], None]) -> None:
        self._url = url
        self._size = 0
        self._parser = DefusedXMLParser(target=_Target(take), forbid_dtd=True)

    def feed(self, data: bytes) -> None:
        """Take a piece of the document. Raises OriginFailed."""
        self._size += len(data)
        if self._size > MAX_BYTES:
            raise OriginFailed(f"{self._url}: the listing is longer than {MAX_BYTES} bytes; list less")
        self._run(lambda: self._parser.feed(data))

    def close(self) -> None:
        """The document is over. Raises OriginFailed when it was not complete."""
        self._run(self._parser.close)

    def _run(self, step: Callable[[], object]) -> None:
        try:
            step()
        except (ParseError, DefusedXmlException, ValueError) as e:
            why = type(e).__name__ if isinstance(e, DefusedXmlException) else str(e)
            raise OriginFailed(f"{self._url}: the server's listing is no acceptable XML ({why})") from e


class _Target:
    """Gets the parser's events."""

    def __init__(self, take: Callable[[Resource], None]) -> None:
        self._take = take
        self._depth = 0
        self._text: list[str] = []
        self._length = 0
        self._resource = Resource()
        self._found: dict[str, str] = {}
        self._collection = False

    def start(self, tag: str, attributes: object) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        name = _local(tag)
        if name == "response":
            self._resource = Resource()
        elif name == "propstat":
            self._found, self._collection = {}, False
        elif name == "collection":
            self._collection = True
        self._text, self._length = [], 0

    def data(self, text: str) -> None:
        self._length += len(text)
        if self._length > MAX_TEXT:
            raise ValueError("a property is too long")
        self._text.append(text)

    def end(self, tag: str) -> None:
        self._depth -= 1
        name, text = _local(tag), "".join(self._text).strip()
        if name == "href" and not self._resource.href:
            self._resource.href = text
        elif name in _KEPT and text:
            self._found[name] = text
        elif name == "status":
            if text and "200" not in text.split(" ")[1:2]:
                self._found, self._collection = {}, False
        elif name == "propstat":
            self._resource.properties |= self._found
            self._resource.is_dir |= self._collection or self._found.get("iscollection") in {"1", "true"}
        elif name == "response":
            self._take(self._resource)
        self._text, self._length = [], 0

    def close(self) -> None:
        pass


def _local(tag: str) -> str:
    return tag.rpartition("}")[2].lower()


def listed(resource: Resource, prefix: str) -> Stat | None:
    """The Stat of a listed resource; None for names outside the prefix, and those that no request could say.

    Args:
        resource: As the server gave it; its ``href`` may be a URL or a path.
        prefix: Canonical path of the store's top on the server.
    """
    raw = resource.href
    if "://" in raw:
        raw = "/" + raw.partition("://")[2].partition("/")[2]
    try:
        full = normalise(raw)
    except (BadPath, UriTooLong):
        return None
    front = prefix.rstrip("/")
    if full != prefix and not full.startswith(front + "/"):
        return None
    path, told = full[len(front) :] or "/", resource.properties
    length = told.get("getcontentlength", "")
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
    if resource.is_dir:
        size = 0
    fields = [("etag", told.get("getetag", "")), ("last-modified", told.get("getlastmodified", ""))]
    stat = stat_of(Head(207, [*fields, ("digest", told.get("checksums", ""))]), path, size)
    return replace(stat, is_dir=resource.is_dir)

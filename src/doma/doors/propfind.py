"""PROPFIND and PROPPATCH: what WebDAV clients read of files and collections.

The asked resource comes first, then the children as the store lists them; entries are written as they come,
so that 100 000 of them need no more memory than one. davix and gfal2 look at local names only.

Source: RFC 4918 §9.1, §13; RFC 4331 (quota); rules W14, W15, W31-W34 of the storage contract.
"""

import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from functools import lru_cache
from xml.sax.saxutils import escape, quoteattr

from doma.auth.model import Verb
from doma.core.checksum import digest_header
from doma.core.errors import BadRequest
from doma.doors.dav_call import Call, href
from doma.doors.dav_xml import LIMIT, Wanted, asked, changed
from doma.doors.listing import visible
from doma.doors.reply import content_type
from doma.store.protocol import CanSpace, Space, Stat

XML = 'application/xml; charset="utf-8"'
LCGDM = "{LCGDM:}"
DCACHE = "{http://www.dcache.org/2013/webdav}"

_OPEN = (
    '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:" xmlns:L="LCGDM:"'
    ' xmlns:C="http://www.dcache.org/2013/webdav">\n'
)
_CLOSE = "</D:multistatus>\n"
_OK = "<D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
_MISSING = "<D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>"

_Value = Callable[[Stat], str | None]


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


_LIVE: dict[str, _Value] = {
    "{DAV:}resourcetype": lambda s: "<D:collection/>" if s.is_dir else "",
    "{DAV:}getcontentlength": lambda s: None if s.is_dir else str(s.size),
    "{DAV:}getlastmodified": lambda s: _http_date(int(s.modified)),
    "{DAV:}creationdate": lambda s: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(s.modified)),
    "{DAV:}displayname": lambda s: escape(s.path.rpartition("/")[2]),
    "{DAV:}getetag": lambda s: escape(f'"{s.version}"') if s.version else None,
    "{DAV:}getcontenttype": lambda s: None if s.is_dir else content_type(s.path),
    "{DAV:}iscollection": lambda s: "1" if s.is_dir else "0",
    "{DAV:}executable": lambda s: "T" if s.is_dir else "F",
    LCGDM + "mode": lambda s: "40755" if s.is_dir else "100644",
    # davix reads these two as numbers: there are no accounts here, so it is everybody's 0.
    LCGDM + "owner": lambda s: "0",
    LCGDM + "group": lambda s: "0",
    DCACHE + "checksums": lambda s: escape(digest_header(s.checksums) or "") or None,
    DCACHE + "FileLocality": lambda s: None if s.is_dir else "ONLINE",
}
"""Property to its XML content; None: this resource does not have it."""

_USED, _AVAILABLE = "{DAV:}quota-used-bytes", "{DAV:}quota-available-bytes"
_SPACE = (_USED, _AVAILABLE)


async def propfind(call: Call) -> None:
    """Answer PROPFIND with Depth 0 or 1."""
    depth = call.headers.get("depth", "infinity").strip().lower()
    if depth not in {"0", "1", "infinity"}:
        raise BadRequest(f"{call.shown}: Depth must be 0 or 1, not {depth[:20]!r}")
    call.allow(Verb.STAT)
    if depth == "infinity":
        await _refuse_infinity(call)
        return
    wanted = asked(await call.body(LIMIT))
    stat = await call.found(Verb.STAT)
    children = stat.is_dir and depth == "1"
    if children:
        call.allow(Verb.READ)
    space = None
    if any(name in _SPACE for name in wanted.names) and isinstance(call.endpoint.store, CanSpace):
        space = await call.endpoint.store.space()
    await call.stream(207, {"Content-Type": XML}, _multistatus(call, stat, wanted, space, children))


async def proppatch(call: Call) -> None:
    """Refuse each change by name: live properties are protected, others are not kept."""
    call.must_be_writable()
    stat = await call.found(Verb.MODIFY)
    refused = []
    for name in changed(await call.body(LIMIT)):
        live = name in _LIVE or name in _SPACE
        why = "<D:error><D:cannot-modify-protected-property/></D:error>" if live else ""
        text = "this property is computed by the server" if live else "own properties are not kept here"
        refused.append(
            f"<D:propstat><D:prop>{_element(name)}</D:prop><D:status>HTTP/1.1 403 Forbidden</D:status>"
            f"{why}<D:responsedescription>{text}</D:responsedescription></D:propstat>"
        )
    place = escape(href(call.endpoint, call.path, is_dir=stat.is_dir))
    body = f"{_OPEN}<D:response><D:href>{place}</D:href>{''.join(refused)}</D:response>\n{_CLOSE}"
    await call.answer(207, {"Content-Type": XML}, body.encode())


async def _refuse_infinity(call: Call) -> None:
    body = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<D:error xmlns:D="DAV:"><D:propfind-finite-depth/></D:error>\n'
    )
    headers = {"Content-Type": XML, "X-Error-Code": "refused"}
    await call.answer(403, headers, body.encode())


async def _multistatus(
    call: Call, stat: Stat, wanted: Wanted, space: Space | None, children: bool
) -> AsyncIterator[str]:
    write = _writer(call, wanted, space)
    first = None
    entries = visible(call) if children else None
    if entries is not None:
        first = await anext(entries, None)  # a store that cannot list fails before the status is sent
    yield _OPEN + write(stat)
    if entries is not None and first is not None:
        yield write(first)
        async for entry in entries:
            yield write(entry)
    yield _CLOSE


def _writer(call: Call, wanted: Wanted, space: Space | None) -> Callable[[Stat], str]:
    """What turns one entry into its ``D:response``: everything that is the same for all is made once."""
    known: dict[str, _Value] = dict(_LIVE)
    if space is not None:
        used, available = str(space.used), str(max(0, space.available))
        known[_USED] = lambda s: used if s.is_dir else None
        known[_AVAILABLE] = lambda s: available if s.is_dir else None
    names = tuple(dict.fromkeys((*_LIVE, *wanted.names))) if wanted.everything else wanted.names
    if wanted.only_names:
        names = tuple(_LIVE)
    explicit = set(wanted.names)
    tags = [(known[n], *_tags(n), _element(n), n in explicit) for n in names if n in known]
    unknown = "".join(_element(n) for n in names if n not in known)
    only_names, endpoint = wanted.only_names, call.endpoint

    def write(entry: Stat) -> str:
        have, missing = [], [unknown]
        for value, opening, closing, empty, explicitly in tags:
            content = value(entry)
            if content is None:
                if explicitly:
                    missing.append(empty)
            elif only_names or not content:
                have.append(empty)
            else:
                have.append(opening + content + closing)
        lacking = "".join(missing)
        place = escape(href(endpoint, entry.path, is_dir=entry.is_dir))
        text = f"<D:response><D:href>{place}</D:href>"
        if have or not lacking:
            text += f"<D:propstat><D:prop>{''.join(have)}</D:prop>{_OK}"
        if lacking:
            text += f"<D:propstat><D:prop>{lacking}</D:prop>{_MISSING}"
        return text + "</D:response>\n"

    return write


# The namespace of ``xml:`` may be bound to no other prefix.
_PREFIXES = {"DAV:": "D", "LCGDM:": "L", DCACHE[1:-1]: "C", "http://www.w3.org/XML/1998/namespace": "xml"}


def _tags(name: str) -> tuple[str, str]:
    space, _, local = name[1:].rpartition("}")
    prefix = _PREFIXES[space]
    return f"<{prefix}:{local}>", f"</{prefix}:{local}>"


def _element(name: str) -> str:
    """The empty element of a property, also of one that only the client knows."""
    if not name.startswith("{"):
        return f'<{name} xmlns=""/>'
    space, _, local = name[1:].rpartition("}")
    prefix = _PREFIXES.get(space)
    if prefix is not None:
        return f"<{prefix}:{local}/>"
    return f"<x:{local} xmlns:x={quoteattr(space)}/>"

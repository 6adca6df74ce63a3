"""PROPFIND: what WebDAV clients read of files and collections.

The asked resource comes first, then the children as the store lists them; entries are written as they come,
so that 100 000 of them need no more memory than one. davix and gfal2 look at local names only.

Source: RFC 4918 §9.1, §13; RFC 4331 (quota); rules W14, W31-W34 of the storage contract.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

from doma.auth.model import Verb
from doma.core.checksum import digest_header
from doma.core.errors import BadRequest, NotFound
from doma.doors.dav_call import Call, links
from doma.doors.dav_xml import CLOSE, DCACHE, LCGDM, LIMIT, OPEN, XML, Wanted, asked, element, tags, text
from doma.doors.listing import visible
from doma.doors.reply import content_type
from doma.store.protocol import CanAnnotate, CanQuota, CanSpace, Locality, Space, Stat

_OK = "<D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
_MISSING = "<D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>"

BATCH = 64
"""Entries whose own properties are looked up beside each other."""

_Value = Callable[[Stat], str | None]

_LOCALITY = {
    Locality.DISK: "ONLINE",
    Locality.TAPE: "NEARLINE",
    Locality.DISK_AND_TAPE: "ONLINE_AND_NEARLINE",
    Locality.LOST: "LOST",
    Locality.NONE: "ONLINE",
    Locality.UNAVAILABLE: "UNAVAILABLE",
}
"""dCache's words, which clients of tape know."""


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


@lru_cache(maxsize=4096)
def _iso_date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


LIVE: dict[str, _Value] = {
    "{DAV:}resourcetype": lambda s: "<D:collection/>" if s.is_dir else "",
    "{DAV:}getcontentlength": lambda s: None if s.is_dir else str(s.size),
    "{DAV:}getlastmodified": lambda s: _http_date(int(s.modified)),
    "{DAV:}creationdate": lambda s: _iso_date(int(s.modified)),
    "{DAV:}displayname": lambda s: text(s.path.rpartition("/")[2]),
    "{DAV:}getetag": lambda s: escape(f'"{s.version}"') if s.version else None,
    "{DAV:}getcontenttype": lambda s: None if s.is_dir else content_type(s.path),
    "{DAV:}iscollection": lambda s: "1" if s.is_dir else "0",
    "{DAV:}executable": lambda s: "T" if s.is_dir else "F",
    LCGDM + "mode": lambda s: "40755" if s.is_dir else "100644",
    # davix reads these two as numbers: there are no accounts here, so it is everybody's 0.
    LCGDM + "owner": lambda s: "0",
    LCGDM + "group": lambda s: "0",
    DCACHE + "checksums": lambda s: escape(digest_header(s.checksums) or "") or None,
    DCACHE + "FileLocality": lambda s: None if s.is_dir else _LOCALITY[s.locality],
}
"""Property to its XML content; None: this resource does not have it."""

_ASKED: dict[str, _Value] = {"{DAV:}owner": lambda s: "0", "{DAV:}group": lambda s: "0"}
"""Given only where they are asked for: davix does, while others expect an address here (RFC 3744)."""

_USED, _AVAILABLE = "{DAV:}quota-used-bytes", "{DAV:}quota-available-bytes"
_SPACE = (_USED, _AVAILABLE)
PROTECTED = frozenset((*LIVE, *_ASKED, *_SPACE, "{DAV:}lockdiscovery", "{DAV:}supportedlock"))
"""What no client can set."""


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
        call.allow(Verb.LIST)
    space = await _space(call, stat, wanted)
    await call.stream(207, {"Content-Type": XML}, _multistatus(call, stat, wanted, space, children))


async def _space(call: Call, stat: Stat, wanted: Wanted) -> Space | None:
    """For whoever asks, and for everything of a collection: Rucio asks so, where RFC 4331 §2 would not."""
    if not stat.is_dir or not (wanted.everything or any(name in _SPACE for name in wanted.names)):
        return None
    store = call.endpoint.store
    if isinstance(store, CanQuota):
        return await store.space_at(call.path)
    return await store.space() if isinstance(store, CanSpace) else None


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
    write, own = _writer(call, wanted, space), _own(call, wanted)
    entries = visible(call) if children else None
    # A store that cannot list fails before the status is sent.
    first = await anext(entries, None) if entries is not None else None
    yield OPEN + write(stat, *await own([stat]))
    if entries is not None and first is not None:
        batch = [first]
        async for entry in entries:
            if len(batch) == BATCH:
                yield "".join(map(write, batch, await own(batch)))
                batch = []
            batch.append(entry)
        yield "".join(map(write, batch, await own(batch)))
    yield CLOSE


_Own = Callable[[Sequence[Stat]], Coroutine[Any, Any, Sequence[Mapping[str, str]]]]


def _own(call: Call, wanted: Wanted) -> _Own:
    """What looks up the properties that clients have set on some entries, where one can be wanted."""
    store = call.endpoint.store
    asking = wanted.everything or wanted.only_names or not PROTECTED.issuperset(wanted.names)

    async def own(entries: Sequence[Stat]) -> Sequence[Mapping[str, str]]:
        paths = [entry.path for entry in entries if asking and entry.annotated]
        if not paths or not isinstance(store, CanAnnotate):
            return [{}] * len(entries)
        found = await asyncio.gather(*(_notes(store, path) for path in paths))
        noted = dict(zip(paths, found, strict=True))
        return [noted.get(entry.path, {}) for entry in entries]

    return own


async def _notes(store: CanAnnotate, path: str) -> Mapping[str, str]:
    try:
        return await store.annotations(path)
    except NotFound:  # It vanished after it was listed.
        return {}


class _Plan:
    """What of a request is the same for every entry, made once and kept: clients repeat themselves."""

    def __init__(self, wanted: Wanted) -> None:
        known = LIVE | _ASKED
        every = wanted.everything or wanted.only_names
        names = tuple(dict.fromkeys((*LIVE, *wanted.names))) if every else wanted.names
        explicit = set(wanted.names)
        self.live = [(known[n], *tags(n), element(n), n in explicit) for n in names if n in known]
        self.space = [n for n in _SPACE if n in explicit or wanted.everything]
        self.own = {n: element(n) for n in names if n not in known and n not in _SPACE}
        self.lacking = [element(n) for n in _SPACE if n in explicit]
        """What stands for the space of something that has none, where it was asked for by name."""


_plan = lru_cache(maxsize=64)(_Plan)


def _writer(call: Call, wanted: Wanted, space: Space | None) -> Callable[[Stat, Mapping[str, str]], str]:
    """What turns one entry into its ``D:response``.

    The mapping has what clients have set on the entry: property to its whole element.
    """
    plan, only_names = _plan(wanted), wanted.only_names
    all_own = wanted.everything or only_names
    numbers = {} if space is None else {_USED: space.used, _AVAILABLE: max(0, space.available)}
    spaces = [f"{tags(n)[0]}{numbers[n]}{tags(n)[1]}" for n in plan.space if n in numbers]
    address = links(call.endpoint)

    def write(entry: Stat, own: Mapping[str, str]) -> str:
        have, missing = [], []
        for value, opening, closing, empty, explicitly in plan.live:
            content = value(entry)
            if content is None:
                if explicitly:
                    missing.append(empty)
            elif only_names or not content:
                have.append(empty)
            else:
                have.append(opening + content + closing)
        if spaces and entry.is_dir:
            have += spaces
        else:
            missing += plan.lacking
        for name, empty in plan.own.items():
            if name not in own:
                missing.append(empty)
            elif not all_own:
                have.append(own[name])
        if all_own:
            have += map(element, own) if only_names else own.values()
        told = f"<D:response><D:href>{address(entry)}</D:href>"
        if have or not missing:
            told += f"<D:propstat><D:prop>{''.join(have)}</D:prop>{_OK}"
        if missing:
            told += f"<D:propstat><D:prop>{''.join(missing)}</D:prop>{_MISSING}"
        return told + "</D:response>\n"

    return write

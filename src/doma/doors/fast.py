"""The quick side of the file door: hot reads answered inside the read callback, uploads without copies.

It gives the answers of :mod:`doma.doors.files`, for what it can decide at once: a token that was verified
before, a file whose bytes are in memory, no conditions. Whatever else is asked is left to the application
(None), so that every special case has one home. Expiry and rights are decided at every request.

Source: dataplane.md §3.5, §3.6 of the project's contracts.
"""

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import cast

from doma.auth.model import Identity, Verb
from doma.core import ranges
from doma.core.errors import DomaError
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast_ask import Asker, Unknown, offers
from doma.doors.fast_change import Changes
from doma.doors.fast_tally import Tally
from doma.doors.intake import Count, FastSink, lines
from doma.doors.landing import described
from doma.doors.reads import Asked, Reading
from doma.doors.reply import content_type, kept
from doma.net.exchange import PIECE, SMALL, Answer, Buffer, Request, Sink, Span, status_line
from doma.store.protocol import CanPeek, CanWarm, Hot, Stat

PLACES = 4096
"""Request targets whose endpoint and path are kept worked out …"""
LONGEST = 2048
"""… of up to so many bytes."""
_SLOW = frozenset(
    {
        b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
        b"want-digest", b"want-repr-digest", b"cache-control", b"pragma", b"te", b"x-transfer-status",
        b"x-pelican-nodownload", b"x-pelican-timeout",
    }
)  # fmt: skip
"""Fields that make a read a special case."""


FROM_FILE = 128 << 10
"""Plain answers from this many bytes on go by ``sendfile``: there a copy costs more than a call …"""
FROM_CACHE = 32 << 10
"""… and of a cache, whose files are not mapped, from this many on."""


class _Place:
    """A request target: where it points, and what was found there last."""

    __slots__ = ("cached", "cold", "endpoint", "fixed", "kind", "path", "peek", "stat", "warm")

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        store = endpoint.store
        self.endpoint = endpoint
        self.path = path
        self.peek = cast("CanPeek", store).peek
        self.warm = cast("CanWarm", store).warm if offers(type(store), CanWarm) else None
        self.kind = content_type(path).encode()
        self.stat: Stat | None = None
        self.fixed = b""
        self.cached = False
        """It is read through a cache, which has lines of its own and counts where the bytes come from."""
        self.cold: Callable[[int, int], Awaitable[Buffer]]

    def see(self, hot: Hot) -> None:
        """Work out what holds for all answers of one version."""
        known, self.stat = self.stat, hot.stat
        if known == self.stat:
            return  # opened once more
        self.fixed = described(hot.stat) + lines(kept(hot.stat))
        self.cached = hasattr(hot, "cached")
        self.cold = _Cold(self, hot.stat.version).read


class FastDoor:
    """Answers reads and takes uploads of a site's files; see :class:`doma.net.exchange.Fast`.

    Args:
        site: The endpoints.
        clock: Unix seconds.
        count: Told of what was answered here. Seconds are the door's own for a read, from head to commit
            for an upload.
    """

    def __init__(
        self, site: Site, *, clock: Callable[[], float] = time.time, count: Count | None = None
    ) -> None:
        self._site = site
        self._clock = clock
        self._count = count
        self._ask = Asker(site, clock)
        self._tally = Tally(count, site.usage) if count is not None else None
        self._changes = Changes(site, self._ask, count)
        self._places: dict[bytes, _Place | None] = {}
        self._names = {name.encode() for name in site.endpoints}

    def head(self, request: Request) -> Answer | Sink | None:
        if request.method == b"PUT":
            if _signed(request) or request.target[1:].partition(b"/")[0] not in self._names:
                return None  # for another door, or a service
            return FastSink(self._site, request, self._count)
        if request.method == b"DELETE":
            return self._changes.delete(request)
        if request.method != b"GET" or not _SLOW.isdisjoint(request.fields):
            return None
        try:
            place = self._place(request.target)
        except DomaError:
            return None  # the application says it in full
        if place is None:
            return None
        asked = request.fields.get(b"range", b"")
        answer = self._get(request, place, asked)
        if answer is not None and asked:
            answer.again = partial(self._get, request, place)
        return answer

    def whole(self, request: Request, body: Buffer) -> Answer | None:
        if request.method == b"PUT":
            return self._changes.land(request, body)
        answer = self.head(request)
        assert answer is None or isinstance(answer, Answer)
        return answer

    def _get(self, request: Request, place: _Place, asked: bytes) -> Answer | None:
        tally = self._tally
        began = perf_counter() if tally is not None else 0.0
        try:
            identity = self._ask.identity(request)
            place.endpoint.gate.decide(identity, Verb.READ, place.path)
            hot = place.peek(place.path) or (place.warm(place.path) if place.warm is not None else None)
            if hot is None:
                return None
            stat = hot.stat
            if place.stat is not stat:
                place.see(hot)
            one = _ONE.fullmatch(asked)
            if one is not None and (start := int(one[1])) < (stop := int(one[2]) + 1) <= stat.size:
                spans: list[ranges.Span] | None = [(start, stop)]  # nearly every request
            else:
                spans = ranges.parse(asked.decode("latin-1"), stat.size) if asked else None
        except (Unknown, DomaError):
            return None
        reading = self._reading(request, place, identity, hot)
        answer = self._answer(place, hot, stat.size, spans, request.tls)
        if answer is None:
            return None
        if reading is not None:
            if spans is None or len(spans) == 1:
                reading.add(answer.size, 1)
            else:
                reading.add(sum([stop - start for start, stop in spans]), len(spans))
        if tally is not None:
            tally.read(place.endpoint.name, 206 if spans else 200, identity, answer.size, began)
        return answer

    def _reading(
        self, request: Request, place: _Place, identity: Identity | None, hot: Hot
    ) -> Reading | None:
        """The open file that this read belongs to, if anybody follows it."""
        reads = self._site.reads
        if reads is None or not (place.cached or reads.all):
            return None
        now, last = self._clock(), request.memo.get("reading")
        if last is not None and last[0] is place and last[1].identity is identity and not last[1].ended:
            reading: Reading = last[1]
            reading.last = now
        else:
            program = request.fields.get(b"user-agent", b"").decode("latin-1")
            asked = Asked(request.client[0], request.tls, program)
            shown = f"/{place.endpoint.name}{place.path}"
            reading = reads.of(asked, identity, shown, hot.stat.size, cached=place.cached)
            request.memo["reading"] = (place, reading)
        if place.cached:
            hot.cached = reading.file.cached  # type: ignore[attr-defined] # such a store's own
        return reading

    def _place(self, target: bytes) -> _Place | None:
        try:
            return self._places[target]
        except KeyError:
            pass
        place = None
        with suppress(Unknown):
            _, endpoint, path = self._ask.aim(target)
            if offers(type(endpoint.store), CanPeek):
                place = _Place(endpoint, path)
        if len(target) <= LONGEST:
            if len(self._places) >= PLACES:
                self._places.clear()
            self._places[target] = place
        return place

    def _answer(
        self, place: _Place, hot: Hot, whole: int, spans: list[ranges.Span] | None, tls: bool
    ) -> Answer | None:
        fixed = place.fixed
        if place.cached:
            fixed += hot.lines  # type: ignore[attr-defined] # such a store's own
        if spans is None:
            start, stop = 0, whole
            head = b"%sContent-Type: %s\r\nContent-Length: %d\r\n%s" % (_OK, place.kind, stop, fixed)
        elif len(spans) == 1:
            start, stop = spans[0]
            head = b"%sContent-Type: %s\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n%s" % (
                _PARTIAL, place.kind, stop - start, start, stop - 1, whole, fixed,
            )  # fmt: skip
        else:
            return self._multipart(place, hot, spans, fixed)
        size = stop - start
        if not tls and size >= (FROM_CACHE if place.cached else FROM_FILE):
            ready = hot.fileno(start, min(stop, start + PIECE))
            if ready is not None:
                return Answer(head, span=Span(hot, start, stop, place.cold, ready), size=size)
        if size <= SMALL:
            view = hot.view(start, stop) if size else _EMPTY
            return None if view is None else Answer(head, (view,) if size else (), size=size)
        first = min(stop, (start // SMALL + 1) * SMALL)
        if hot.fileno(start, first) is None and hot.view(start, first) is None:
            return None
        return Answer(head, span=Span(hot, start, stop, place.cold), size=size)

    def _multipart(self, place: _Place, hot: Hot, spans: list[ranges.Span], fixed: bytes) -> Answer | None:
        mark = secrets.token_hex(16)
        frames, tail, total = ranges.parts(spans, hot.stat.size, place.kind.decode(), mark)
        views = _views(place, hot, spans)
        if views is None:
            return None
        parts: list[Buffer] = []
        for frame, view in zip(frames, views, strict=True):
            parts += (frame, view)
        parts.append(tail)
        head = b"%sContent-Type: multipart/byteranges; boundary=%s\r\nContent-Length: %d\r\n%s" % (
            _PARTIAL, mark.encode(), total, fixed,
        )  # fmt: skip
        return Answer(head, parts, size=total)


def _views(place: _Place, hot: Hot, spans: list[ranges.Span]) -> list[memoryview] | None:
    """The bytes of many ranges."""
    if place.cached:
        of_all: list[memoryview] | None = hot.views(spans)  # type: ignore[attr-defined] # such a store's own
        return of_all
    low = min(start for start, _ in spans)
    # One question for all between the first and the last byte is cheapest, if the answer is yes.
    whole = hot.view(low, max(stop for _, stop in spans))
    if whole is not None:
        return [whole[start - low : stop - low] for start, stop in spans]
    found = [hot.view(start, stop) for start, stop in spans]
    return None if None in found else cast("list[memoryview]", found)


def _signed(request: Request) -> bool:
    """Whether the request is one of S3, which has a door of its own."""
    return (
        request.fields.get(b"authorization", b"").startswith(b"AWS")
        or b"X-Amz-Algorithm=" in request.target
        or b"AWSAccessKeyId=" in request.target
    )


_ONE = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{1,18})")
_OK, _PARTIAL = status_line(200), status_line(206)
_EMPTY = memoryview(b"")


class _Cold:
    """Reads pieces that fell out of memory while an answer ran; of the same version or not at all."""

    __slots__ = ("_place", "_version")

    def __init__(self, place: _Place, version: str) -> None:
        self._place, self._version = place, version

    async def read(self, start: int, stop: int) -> Buffer:
        reader = await self._place.endpoint.store.open(self._place.path)
        try:
            if reader.stat.version != self._version:
                raise DomaError(f"{self._place.path}: was replaced while it was sent; read it again")
            return await reader.read(start, stop)
        finally:
            await reader.close()

"""The quick side of the file door: hot reads answered inside the read callback, uploads without copies.

It gives the answers of :mod:`doma.doors.files`, for what it can decide at once: a token that was verified
before, a file whose bytes are in memory, no conditions. Whatever else is asked is left to the application
(None), so that every special case has one home. Expiry and rights are decided at every request.

Source: dataplane.md §3.5, §3.6 of the project's contracts.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from time import perf_counter
from typing import cast

from doma.auth.model import Identity, Verb
from doma.core import ranges
from doma.core.errors import DomaError
from doma.doors.endpoint import Site
from doma.doors.fast_again import ONE, Again
from doma.doors.fast_ask import Asker, Unknown, offers
from doma.doors.fast_change import Changes
from doma.doors.fast_place import Place
from doma.doors.fast_tally import Tally
from doma.doors.intake import Count, FastSink
from doma.doors.reads import Asked, Reading
from doma.net.exchange import PIECE, SMALL, Answer, Buffer, Request, Sink, Span, status_line
from doma.store.protocol import CanPeek, Hot

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
        self._places: dict[bytes, Place | None] = {}
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
            answer.again = Again(
                partial(self._get, request, place), self._clock, self._site.verifier, self._tally
            )
        return answer

    def whole(self, request: Request, body: Buffer) -> Answer | None:
        if request.method == b"PUT":
            return self._changes.land(request, body)
        answer = self.head(request)
        assert answer is None or isinstance(answer, Answer)
        return answer

    def _get(self, request: Request, place: Place, asked: bytes, again: Again | None = None) -> Answer | None:
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
            one = ONE.fullmatch(asked)
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
        if again is not None and spans is not None and len(spans) == 1 and answer.size <= PIECE:
            until = self._ask.until(request, identity)
            least = inf if request.tls else FROM_CACHE if place.cached else FROM_FILE
            again.learn(place, hot, identity, reading, until=until, least=least)
        return answer

    def _reading(self, request: Request, place: Place, identity: Identity | None, hot: Hot) -> Reading | None:
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

    def _place(self, target: bytes) -> Place | None:
        try:
            return self._places[target]
        except KeyError:
            pass
        place = None
        with suppress(Unknown):
            _, endpoint, path = self._ask.aim(target)
            if offers(type(endpoint.store), CanPeek):
                place = Place(endpoint, path)
        if len(target) <= LONGEST:
            if len(self._places) >= PLACES:
                self._places.clear()
            self._places[target] = place
        return place

    def _answer(
        self, place: Place, hot: Hot, whole: int, spans: list[ranges.Span] | None, tls: bool
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

    def _multipart(self, place: Place, hot: Hot, spans: list[ranges.Span], fixed: bytes) -> Answer | None:
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


def _views(place: Place, hot: Hot, spans: list[ranges.Span]) -> list[memoryview] | None:
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


_OK, _PARTIAL = status_line(200), status_line(206)
_EMPTY = memoryview(b"")

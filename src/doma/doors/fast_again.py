"""The next ranges of one file on one connection, of which nearly all is known from the last one.

Source: dataplane.md §3.5 of the project's contracts.
"""

import re
from collections.abc import Awaitable, Callable
from math import inf
from time import perf_counter

from doma.auth.model import Identity
from doma.auth.verifier import Verifier
from doma.doors.fast_place import Place
from doma.doors.fast_tally import Tally
from doma.doors.reads import Reading
from doma.net.exchange import PIECE, SMALL, Answer, Buffer, Span, status_line
from doma.store.protocol import Hot, Stat

ONE = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{1,18})")
"""A single range with both ends: nearly every request."""
_PARTIAL = status_line(206)


class Again:
    """Answers single ranges of a file as the door would, who is asked for everything else.

    What the door decided is decided anew wherever it can have changed: the token by time and by the
    verifier's epoch; the file, its freshness and its bytes at every range. Rights follow from the identity
    and the path alone. Nothing is held here that would keep a file open.

    Args:
        door: Answers a value of ``Range``, and calls :meth:`learn` where that may be of use.
        clock: Unix seconds.
        verifier: Has the epoch of its verdicts.
        tally: Told of answers.
    """

    __slots__ = (
        "_after",
        "_before",
        "_clock",
        "_cold",
        "_door",
        "_epoch",
        "_fixed",
        "_identity",
        "_least",
        "_lines",
        "_place",
        "_reading",
        "_stat",
        "_tally",
        "_until",
        "_verifier",
    )

    _place: Place
    _stat: Stat
    _fixed: bytes
    _cold: Callable[[int, int], Awaitable[Buffer]]
    _identity: Identity | None
    _reading: Reading | None

    def __init__(
        self,
        door: "Callable[[bytes, Again], Answer | None]",
        clock: Callable[[], float],
        verifier: Verifier,
        tally: Tally | None,
    ) -> None:
        self._door, self._clock, self._verifier, self._tally = door, clock, verifier, tally
        self._epoch = -1
        self._until = -inf
        self._least: float = inf
        self._before = self._after = self._lines = b""

    def learn(
        self,
        place: Place,
        hot: Hot,
        identity: Identity | None,
        reading: Reading | None,
        *,
        until: float,
        least: float,
    ) -> None:
        """Keep what the door found out for a range.

        Args:
            place: Where the file is.
            hot: The version that it has seen last.
            identity: Who asks, and may read this.
            reading: The open file that it belongs to.
            until: Unix seconds; until then the identity may be believed, unless the epoch changes.
            least: Bytes from which on a range goes by ``sendfile``.
        """
        self._place, self._identity, self._reading = place, identity, reading
        self._stat, self._fixed, self._cold = hot.stat, place.fixed, place.cold
        self._until, self._epoch, self._least = until, self._verifier.epoch, least
        self._before = b"%sContent-Type: %s\r\nContent-Length: " % (_PARTIAL, place.kind)
        self._say(hot.lines if place.cached else b"")  # type: ignore[attr-defined] # such a store's own

    def __call__(self, asked: bytes) -> Answer | None:
        """The answer to the same request with this value of ``Range``."""
        began = perf_counter()
        one, now = ONE.fullmatch(asked), self._clock()
        if one is None or now >= self._until or self._verifier.epoch != self._epoch:
            return self._door(asked, self)
        place, stat = self._place, self._stat
        hot = place.peek(place.path)
        start, stop = int(one[1]), int(one[2]) + 1
        size = stop - start
        if hot is None or hot.stat is not stat or not (start < stop <= stat.size and size <= PIECE):
            return self._door(asked, self)
        if (reading := self._reading) is not None:
            if reading.ended:
                return self._door(asked, self)
            reading.last = now
        if place.cached:
            if reading is not None:
                hot.cached = reading.file.cached  # type: ignore[attr-defined] # such a store's own
            if hot.lines is not self._lines:  # type: ignore[attr-defined]
                self._say(hot.lines)  # type: ignore[attr-defined]
        if size >= self._least:
            ready = hot.fileno(start, stop)
            if ready is None:
                return self._door(asked, self)
            answer = Answer(b"", (), Span(hot, start, stop, self._cold, ready), None, size)
        else:
            view = hot.view(start, stop) if size <= SMALL else None
            if view is None:
                return self._door(asked, self)
            answer = Answer(b"", (view,), None, None, size)
        answer.head = b"%s%d\r\nContent-Range: bytes %d-%d/%s" % (
            self._before, size, start, stop - 1, self._after,
        )  # fmt: skip
        if reading is not None:
            reading.file.reads.add(size)
        if self._tally is not None:
            self._tally.read(place.endpoint.name, 206, self._identity, size, began)
        return answer

    def _say(self, lines: bytes) -> None:
        """Take over a cache's own lines, which change once a second."""
        self._lines = lines
        self._after = b"%d\r\n%s%s" % (self._stat.size, self._fixed, lines)

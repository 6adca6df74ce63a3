"""A request that differs from the connection's last one in one place only is answered without a parser.

Readers of columnar files send such requests by the thousand with another range each (:class:`Repeat`), jobs
with many small files with another target and length (:class:`Frame`). The bytes around are those of a request
that was parsed, and what differs holds nothing that could end a line, so a parser would find the same. Rights
and expiry are decided by the door at every request all the same.

Source: dataplane.md §2 (a parser's share of a request) of the project's contracts.
"""

import re
from collections.abc import Callable

from doma.net.exchange import Answer, Buffer, Request

_RANGE_LINE = re.compile(rb"\r\nrange: *", re.IGNORECASE)
_HARMLESS = b"bytes=0123456789, -"
"""What a range is written with; nothing of it ends a line."""

HEAD = 16 << 10
"""Bytes of a head that is remembered."""
LARGEST = 64 << 10
"""Bytes of a request with its body that are compared."""
_LENGTH_LINE = re.compile(rb"\r\ncontent-length: *", re.IGNORECASE)
_SPECIAL = {b"range", b"upgrade"}
_TARGET = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"#?")
"""What a plain target is written with."""


class Repeat:
    """What one connection remembers of its last request."""

    __slots__ = ("_again", "_frame", "_prefix", "_suffix", "_target")

    def __init__(self) -> None:
        self._target = self._prefix = self._suffix = b""
        self._frame = 0
        self._again: Callable[[bytes], Answer | None] | None = None

    def learn(self, raw: memoryview, request: Request, answer: Answer) -> None:
        """Keep the frame of a request that was read alone, the second time for one target.

        Args:
            raw: All bytes that were read; empty if they were not this request alone.
            request: As it was parsed.
            answer: What the door said.
        """
        if request.target != self._target:
            self._target, self._again = request.target, None
        elif answer.again is not None and request.keep_alive and b"connection" not in request.fields:
            whole = bytes(raw)
            found = _RANGE_LINE.findall(whole)
            value = request.fields.get(b"range", b"")
            if len(found) == 1 and value and whole.count(b"\r\n\r\n") == 1 and whole.endswith(b"\r\n\r\n"):
                before, line, after = whole.partition(found[0])
                if after.startswith(value + b"\r\n"):
                    self._prefix, self._suffix = before + line, after[len(value) :]
                    self._frame = len(self._prefix) + len(self._suffix)
                    self._again = answer.again

    def forget(self) -> None:
        """The connection is gone."""
        self._again = None

    def answer(self, data: memoryview) -> Answer | None:
        """The door's answer if these bytes are the same request with another range; else None."""
        again = self._again
        if again is None or len(data) <= self._frame:
            return None
        raw = bytes(data)
        if not (raw.startswith(self._prefix) and raw.endswith(self._suffix)):
            return None
        value = raw[len(self._prefix) : len(raw) - len(self._suffix)]
        return None if value.translate(None, _HARMLESS) else again(value)


class Frame:
    """What surrounds target and length in the requests of a connection, from the second like one on."""

    __slots__ = ("_after", "_before", "_begin", "_between", "_digits", "_method", "_request")

    def __init__(self) -> None:
        self._method = self._begin = self._before = self._after = self._digits = self._between = b""
        self._request: Request | None = None

    def learn(self, raw: Buffer, request: Request) -> None:
        """Keep the frame of a request that was answered at once.

        Args:
            raw: Its first :data:`HEAD` bytes and no other request's; empty if they are not at hand.
            request: As it was parsed.
        """
        seen, self._method = self._method, request.method
        if seen != request.method or not request.keep_alive or request.version != "1.1" or request.repeats:
            return
        if request.chunked or request.expect or not _SPECIAL.isdisjoint(request.fields):
            return
        head, end, _ = bytes(raw[:HEAD]).partition(b"\r\n\r\n")
        begin = request.method + b" "
        if not end or not head.startswith(begin + request.target + b" HTTP/1.1\r\n"):
            return
        before, after, digits = head[len(begin) + len(request.target) :] + end, b"", b""
        if request.length:
            line = _LENGTH_LINE.findall(before)
            digits = request.fields[b"content-length"]
            if len(line) != 1:
                return
            before, _, after = before.partition(line[0])
            if not after.startswith(digits + b"\r\n"):
                return
            before, after = before + line[0], after[len(digits) :]
        self._begin, self._before, self._after, self._digits = begin + b"/", before, after, digits
        self._between = before + digits + after
        self._request = request

    def forget(self) -> None:
        """The connection is gone."""
        self._request = None

    def match(self, data: memoryview) -> tuple[Request, bytes] | None:
        """The request that these bytes are, and its body, if that is all they are and fits the frame.

        The request is used again for the next match.
        """
        request = self._request
        if request is None or len(data) > LARGEST:
            return None
        raw = bytes(data)
        begin = self._begin
        end = raw.find(b" ", len(begin))
        if not (raw.startswith(begin) and raw.startswith(self._before, end)):
            return None
        target = raw[len(begin) - 1 : end]
        if target.translate(None, _TARGET):
            return None
        at = end + len(self._between)
        if len(raw) - at == request.length and raw.startswith(self._between, end):
            request.target = target
            return request, raw[at:]
        at = end + len(self._before)
        if self._after:
            stop = raw.find(b"\r", at)
            digits = raw[at:stop]
            if not (digits.isdigit() and raw.startswith(self._after, stop)):
                return None
            at = stop + len(self._after)
            if len(digits) > 6 or len(raw) - at != int(digits) or at == len(raw):
                return None
            if digits != self._digits:
                request = self._resized(request, digits)
        elif at != len(raw):
            return None
        request.target = target
        return request, raw[at:]

    def _resized(self, request: Request, digits: bytes) -> Request:
        """The same request with a body of another length."""
        name = b"content-length"
        self._digits, request.length = digits, int(digits)
        self._between = self._before + digits + self._after
        request.headers = [(field, digits if field == name else value) for field, value in request.headers]
        request.fields = {**request.fields, name: digits}
        return request

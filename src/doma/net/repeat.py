"""A request that differs from the connection's last one in its range only is answered without a parser.

Readers of columnar files send such requests by the thousand. The bytes before and after the range value are
those of a request that was parsed, and the value holds nothing that could end a line, so a parser would find
the same. Rights and expiry are decided by the door at every request all the same.

Source: dataplane.md §2 (a parser's share of a request) of the project's contracts.
"""

import re
from collections.abc import Callable

from doma.net.exchange import Answer, Request

_RANGE_LINE = re.compile(rb"\r\nrange: *", re.IGNORECASE)
_HARMLESS = b"bytes=0123456789, -"
"""What a range is written with; nothing of it ends a line."""


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

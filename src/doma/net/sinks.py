"""An answer's head, and the places that its body can go to."""

from collections.abc import Callable
from typing import Protocol

from doma.core.errors import OriginFailed

Piece = bytes | memoryview


class Head:
    """Status and headers of an answer; header names in lower case."""

    __slots__ = ("fields", "status")

    def __init__(self, status: int, fields: list[tuple[str, str]]) -> None:
        self.status = status
        self.fields = fields

    def get(self, name: str, default: str = "") -> str:
        """All fields of that name (lower case), joined by commas as RFC 9110 §5.3 allows."""
        found = [value for key, value in self.fields if key == name]
        return ", ".join(found) if found else default

    @property
    def length(self) -> int | None:
        """``Content-Length``, if there is a valid one."""
        text = self.get("content-length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class Sink(Protocol):
    """Takes a body piece by piece; the view is valid during the call only."""

    def feed(self, data: Piece) -> None: ...


class Fill:
    """A buffer of exactly the body's size, received into directly."""

    __slots__ = ("got", "target")

    def __init__(self, target: memoryview) -> None:
        self.target = target
        self.got = 0

    def feed(self, data: Piece) -> None:
        stop = self.got + len(data)
        if stop > len(self.target):
            raise OriginFailed(f"the body is longer than the {len(self.target)} bytes asked for")
        self.target[self.got : stop] = data
        self.got = stop


class Pour:
    """Hands each piece to a synchronous function."""

    __slots__ = ("feed",)

    def __init__(self, take: Callable[[Piece], None]) -> None:
        self.feed = take

"""A place in the bytes of objects as ROOT streams them.

Source: ROOT's ``TBufferFile``: byte counts, versions, TObject, TNamed, TString.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_COUNT, _NEW = 0x4000_0000, 0xFFFF_FFFF
_IS_REFERENCED = 1 << 4
_U4, _OBJECT = struct.Struct(">I"), struct.Struct(">HII")


class Odd(Exception):
    """Not one of the forms that are known here."""


class Cursor:
    """A place in the bytes; it never goes beyond them."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, form: struct.Struct, skip: int = 0) -> tuple[Any, ...]:
        self.at += skip
        found = form.unpack_from(self.data, self.at)
        self.at += form.size
        return found

    def sized(self) -> int:
        """The end of what begins here with a byte count, which is not passed."""
        (count,) = _U4.unpack_from(self.data, self.at)
        end = self.at + 4 + (count & ~_COUNT)
        if not count & _COUNT or count == _NEW or end > len(self.data):
            raise Odd
        return int(end)

    def skip_sized(self) -> None:
        self.at = self.sized()

    def version(self) -> tuple[int, int]:
        """Version and end of an object; the cursor stands behind both."""
        end = self.sized()
        self.at += 6
        return int.from_bytes(self.data[self.at - 2 : self.at], "big"), end

    def object(self) -> None:
        """Pass a TObject."""
        version, _, bits = self.take(_OBJECT)
        if version != 1:
            raise Odd
        self.at += 2 if bits & _IS_REFERENCED else 0

    def named(self) -> tuple[str, str]:
        """Name and title of a TNamed."""
        end = self.version()[1]
        self.object()
        found = self.string(), self.string()
        if self.at != end:
            raise Odd
        return found

    def string(self) -> str:
        size = self.data[self.at]
        self.at += 1
        if size == 255:
            (size,) = self.take(_U4)
        if self.at + size > len(self.data):
            raise Odd
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def word(self, at: int) -> bytes:
        """A name that ends with a zero byte."""
        return self.data[at : self.data.index(b"\0", at, at + 256)]

    def array(self, kind: str, count: int) -> npt.NDArray[np.int64]:
        """Numbers behind one byte that says whether there are any."""
        self.at += 1
        found = np.frombuffer(self.data, kind, count, self.at).astype(np.int64)
        self.at += found.size * np.dtype(kind).itemsize
        return found

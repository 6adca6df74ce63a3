"""CRC-64/NVME, the checksum that newer AWS libraries add by themselves, in numpy.

A CRC is linear, so a piece is cut into lanes that step side by side; their registers are joined two by two
with the operator "append so many zero bytes". About a hundred times the speed of a loop over bytes.

Source: NVM Express NVM Command Set 1.0 §5.2.1.3.4 (polynomial 0xAD93D23594C93659, reflected); zlib's
``crc32_combine`` for the joining.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_POLYNOMIAL = 0x9A6C9329AC4BC9B5
_ALL = (1 << 64) - 1
_STEP = 256
"""Bytes of a lane."""


class Crc64:
    """An incremental CRC-64/NVME.

    >>> one = Crc64(); one.update(b"123456789"); one.hexdigest()
    'ae8b14860a799888'
    """

    def __init__(self) -> None:
        self._register = _ALL

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        view = memoryview(data).cast("B")
        lanes = 1 << (len(view) // _STEP).bit_length() - 1 if len(view) >= 4 * _STEP else 0
        if lanes:
            head = lanes * _STEP
            self._register = _after(self._register, head) ^ _lanes(view[:head], lanes)
            self.update(view[head:])
            return
        table, register = _bytes(), self._register
        for byte in view:
            register = table[(register ^ byte) & 0xFF] ^ register >> 8
        self._register = register

    def hexdigest(self) -> str:
        """The value so far."""
        return f"{self._register ^ _ALL:016x}"


def _lanes(view: memoryview, lanes: int) -> int:
    """The register after these bytes, begun at zero; ``lanes`` is a power of two."""
    columns = np.frombuffer(view, np.uint8).reshape(lanes, _STEP).T.astype(np.uint64)
    table, low, eight = np.array(_bytes(), np.uint64), np.uint64(0xFF), np.uint64(8)
    registers = np.zeros(lanes, np.uint64)
    for column in columns:
        registers = table[(registers ^ column) & low] ^ registers >> eight
    length = _STEP
    while len(registers) > 1:
        registers = _applied(_zeros(length), registers[::2]) ^ registers[1::2]
        length *= 2
    return int(registers[0])


def _after(register: int, length: int) -> int:
    """A register after so many zero bytes."""
    word = np.array([register], np.uint64)
    bit = 0
    while length >> bit:
        if length >> bit & 1:
            word = _applied(_zeros(1 << bit), word)
        bit += 1
    return int(word[0])


def _applied(matrix: Words, words: Words) -> Words:
    """A 64 by 64 matrix over GF(2), given by its columns, times each word."""
    out = np.zeros(len(words), np.uint64)
    for bit in range(64):
        out ^= matrix[bit] * (words >> np.uint64(bit) & np.uint64(1))
    return out


@lru_cache(64)
def _zeros(length: int) -> Words:
    """The operator "append ``length`` zero bytes"; ``length`` is a power of two."""
    if length > 1:
        half = _zeros(length // 2)
        return _applied(half, half)
    table = _bytes()
    return np.array([table[1 << b & 0xFF] ^ (1 << b) >> 8 for b in range(64)], np.uint64)


@lru_cache(1)
def _bytes() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)

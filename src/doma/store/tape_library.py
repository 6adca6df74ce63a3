"""The tape library behind a buffer: what one must be able to do, and one that is a folder.

The folder plays a real library: a file goes to a cartridge, a cartridge must be mounted, the tape wound to
the position, the bytes take their time, and things fail. With all times 0 it is a plain second copy.

Source: W95 of the storage contract.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from doma.core.config import Tape
from doma.core.errors import NotFound, StorageUnavailable
from doma.store.oserrors import translated

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is on tape."""

    cartridge: str
    position: int
    """Grows along the tape; the order of reading."""


class Library(Protocol):
    """A tape library. A file is named by an ident that never comes again; every call may be repeated."""

    async def archive(self, drive: int, ident: str, source: Path, size: int, adler32: str) -> Place:
        """Write a file to tape, durably. Once it is there, repeating it gives its place and writes nothing.

        Raises:
            StorageUnavailable: not now; try again.
        """

    async def recall(self, drive: int, ident: str, place: Place, size: int, target: Path) -> None:
        """Read a file from tape into a new file; the caller verifies it.

        Raises:
            NotFound: the library does not have it, for ever.
            StorageUnavailable: not now; try again.
        """

    async def remove(self, ident: str, place: Place | None) -> None:
        """Give a file up. Idempotent; raises StorageUnavailable."""

    async def close(self) -> None:
        """Release everything. Idempotent."""


@dataclass(slots=True)
class _Drive:
    mounted: str = ""
    head: int = 0


@dataclass(slots=True)
class Counts:
    """What the simulated library has done."""

    mounts: int = 0
    written: int = 0
    read: int = 0
    seconds: float = 0.0
    """Of mounting, winding and moving bytes."""
    order: list[tuple[str, int]] = field(default_factory=list)
    """The last reads: cartridge and position."""


class FolderLibrary:
    """Cartridges as folders below one folder, a file for each file: ``V00001/<position>.<ident>``.

    The names are the index: a file is there under its full name, whole and durable, or it is not there.

    Args:
        folder: Made if it is missing.
        options: Times and failure rates.
        rng: Decides about failures.
        sleep: Waits; a test may count instead.
    """

    def __init__(
        self,
        folder: Path,
        options: Tape,
        *,
        rng: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._folder = folder
        self._options = options
        self._rng = rng or Random()  # noqa: S311 - plays accidents
        self._sleep = sleep
        self._drives = [_Drive() for _ in range(options.drives)]
        self._index: dict[str, Place] = {}
        self._ends: dict[str, int] = {}
        self._filling: dict[int, str] = {}
        self.counts = Counts()
        with translated(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            for cartridge in sorted(folder.iterdir()):
                self._ends[cartridge.name] = 0
                for entry in cartridge.iterdir():
                    position, _, ident = entry.name.partition(".")
                    if not position.isdigit():
                        entry.unlink()  # a write that was never finished
                        continue
                    self._index[ident] = Place(cartridge.name, int(position))
                    end = int(position) + entry.stat().st_size
                    self._ends[cartridge.name] = max(self._ends[cartridge.name], end)

    async def archive(self, drive: int, ident: str, source: Path, size: int, adler32: str) -> Place:
        if (there := self._index.get(ident)) is not None:
            return there
        cartridge = self._with_room(drive, size)
        position = self._ends[cartridge]
        await self._go(drive, cartridge, position, size)
        if self._rng.random() < self._options.write_failures:
            raise StorageUnavailable(f"{cartridge}: write error at {position} (simulated); try again")
        place = Place(cartridge, position)
        await asyncio.to_thread(self._write, place, ident, source)
        self._ends[cartridge] = position + max(size, 1)
        self._index[ident] = place
        self.counts.written += 1
        return place

    async def recall(self, drive: int, ident: str, place: Place, size: int, target: Path) -> None:
        await self._go(drive, place.cartridge, place.position, size)
        lost = NotFound(f"{place.cartridge}: the file at {place.position} is lost")
        if self._rng.random() < self._options.losses:
            raise lost
        if self._rng.random() < self._options.read_failures:
            raise StorageUnavailable(
                f"{place.cartridge}: read error at {place.position} (simulated); try again"
            )
        with translated(place.cartridge):
            try:
                await asyncio.to_thread(shutil.copyfile, self._file(ident, place), target)
            except FileNotFoundError as e:
                raise lost from e
        self.counts.read += 1
        self.counts.order = [*self.counts.order[-999:], (place.cartridge, place.position)]

    async def remove(self, ident: str, place: Place | None) -> None:
        there = self._index.pop(ident, place)
        if there is not None:
            with translated(there.cartridge):
                await asyncio.to_thread(self._file(ident, there).unlink, missing_ok=True)

    async def close(self) -> None:
        """Nothing is held."""

    def _file(self, ident: str, place: Place) -> Path:
        return self._folder / place.cartridge / f"{place.position:015d}.{ident}"

    def _with_room(self, drive: int, size: int) -> str:
        """The cartridge that this drive fills; each drive has its own."""
        mine = self._filling.get(drive)
        if mine is None or self._ends[mine] + size > self._options.capacity:
            taken = set(self._filling.values())
            mine = next(
                (
                    name
                    for name, end in self._ends.items()
                    if end + size <= self._options.capacity and name not in taken
                ),
                f"V{len(self._ends) + 1:05d}",
            )
            self._ends.setdefault(mine, 0)
            self._filling[drive] = mine
        return mine

    async def _go(self, number: int, cartridge: str, position: int, size: int) -> None:
        """Mount, wind, and let the bytes take their time."""
        drive, options = self._drives[number], self._options
        seconds = size / options.bandwidth if options.bandwidth else 0.0
        if drive.mounted != cartridge:
            drive.mounted, drive.head = "", 0
            await self._wait(options.mount_time)
            if self._rng.random() < options.mount_failures:
                raise StorageUnavailable(f"{cartridge}: could not be mounted (simulated); try again")
            drive.mounted = cartridge
            self.counts.mounts += 1
        way = abs(position - drive.head) / max(options.capacity, 1)
        drive.head = position + size
        await self._wait(seconds + options.seek_time * min(1.0, way))

    async def _wait(self, seconds: float) -> None:
        self.counts.seconds += seconds
        if seconds > 0:
            await self._sleep(seconds)

    def _write(self, place: Place, ident: str, source: Path) -> None:
        with translated(place.cartridge):
            file = self._file(ident, place)
            file.parent.mkdir(exist_ok=True)
            fresh = file.with_name(f"new.{ident}")
            shutil.copyfile(source, fresh)
            for path, flags in ((fresh, os.O_RDONLY), (file.parent, os.O_RDONLY | os.O_DIRECTORY)):
                fd = os.open(path, flags)
                try:
                    os.fsync(fd)
                    if path == fresh:
                        fresh.rename(file)
                finally:
                    os.close(fd)

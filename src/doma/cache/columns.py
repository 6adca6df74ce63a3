"""Learns the layout of the ROOT and Parquet files that clients read, and keeps it beside the cache's objects.

Nothing is fetched to learn it: a layout is worked out once the reads of clients have brought the metadata, by
a helper process (:mod:`doma.cache.layout_helper`), once for each version, and kept in
``layouts/ab/<key>-<generation>``. A file that has none, or breaks the helper, is kept as an empty layout, so
that it is not tried again.

Source: cache contract §9.
"""

import asyncio
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from doma.cache.extents import PAGE, pages_of
from doma.cache.fetch import Fetcher
from doma.cache.foresight import Sight
from doma.cache.layout import LARGEST, Layout, Span, compose, decode, encode, joined
from doma.cache.layout_helper import Helper, Lacking
from doma.cache.layout_names import chosen
from doma.cache.pages import PageFile
from doma.core.errors import BadQuery, CorruptFile, DomaError, ServiceUnavailable
from doma.store.protocol import PIECE

log = logging.getLogger(__name__)

LEAST = 4 << 20
"""Bytes; the structure of a smaller file is not worth knowing."""
MEMORY = 48 << 20
"""Bytes of layouts in memory; the oldest are forgotten and read again when needed."""
_TRIES = 16
"""How often one file is looked at while its metadata come in."""
_PAUSE = 30.0
"""Seconds before a file is looked at again after there was no room for it."""
_COMPLETE = 256
"""Reads after which it is looked whether all is here and nothing is left to foresee."""
_WAITS = 16
"""Byte ranges that are waited for at once."""
_HEAD = (0, 512)
"""What a client reads first of either format."""


class Layouts:
    """The layouts of one cache.

    Args:
        root: The cache's folder.
        helper: Works them out; closed with this.
        least: Bytes; smaller files are not looked at.
        kept: Told of every version whose layout was written to disk.
    """

    def __init__(
        self,
        root: Path,
        helper: Helper | None = None,
        least: int = LEAST,
        kept: Callable[[str, str], None] = lambda key, generation: None,
    ) -> None:
        self._folder = root / "layouts"
        self._kept = kept
        self.least = least
        self._known: deque[weakref.ref[Watch]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.helper = helper or Helper()

    def foresee(self, fetcher: Fetcher) -> "Watch | None":
        """What foresees the reads of one version; None if it is not worth the trouble."""
        record = fetcher.record
        if record.size < self.least or fetcher.pages.complete:
            return None
        return Watch(self, fetcher.pages, f"{record.key}-{record.generation}", fetcher.place.shown)

    async def columns_ranges(
        self, fetcher: Fetcher, columns: Sequence[str], tree: str | None = None
    ) -> list[Span]:
        """The bytes of columns of a file, with its metadata, ascending; metadata that lack are fetched.

        Args:
            fetcher: The version.
            columns: Globs, see :func:`doma.cache.layout_names.chosen`.
            tree: The tree or RNTuple they are in; None: any.

        Raises:
            UnknownColumn: a glob fits no column; the text has the nearest.
            BadQuery: the file is neither ROOT nor Parquet, or its columns cannot be told.
            ServiceUnavailable: too many files wait for that.
        """
        record = fetcher.record
        name, shown = f"{record.key}-{record.generation}", fetcher.place.shown
        layout = await asyncio.to_thread(self.load, name, record.size)
        if layout is None or layout.waits:
            failed: list[DomaError] = []

            async def read(start: int, stop: int) -> bytes:
                cuts = range(start, stop, PIECE)
                try:
                    return b"".join([bytes(await fetcher.content(at, min(at + PIECE, stop))) for at in cuts])
                except DomaError as e:
                    failed.append(e)
                    raise

            try:
                layout = await self.helper.layout(shown, record.size, read)
            except (CorruptFile, Lacking) as e:
                if failed:
                    raise failed[0] from e
                raise BadQuery(f"{shown}: its columns cannot be told ({e}); prestage it whole") from e
            await self.keep(name, layout)
        if not layout.names:
            raise BadQuery(f"{shown}: its columns cannot be told; prestage it whole", path=shown)
        found = chosen(layout.names, columns, tree, shown)
        return joined([*layout.metadata, *layout.ranges(found)], PAGE)

    async def close(self) -> None:
        """Learn nothing more. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await self.helper.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self, key: str, generation: str) -> None:
        """Forget the layout of a version that is gone. Idempotent."""
        with suppress(OSError):
            self._path(f"{key}-{generation}").unlink()

    def begin(self, watch: "Watch") -> None:
        """Let a file be looked at in the background."""
        task = asyncio.create_task(watch.learn())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def learned(self, watch: "Watch") -> None:
        """Count a layout in memory, and let the oldest go if there are too many."""
        self._known.append(weakref.ref(watch))
        living = [found for ref in self._known if (found := ref()) is not None]
        total = sum(found.weight for found in living)
        while total > MEMORY and len(living) > 1:
            total -= living[0].weight
            living.pop(0).forget()
        self._known = deque(weakref.ref(found) for found in living)

    def load(self, name: str, size: int) -> Layout | None:
        """A layout from disk; None if it is not there or not to be trusted. Blocks."""
        try:
            with self._path(name).open("rb") as file:
                return decode(file.read(LARGEST + 1), size)
        except (OSError, CorruptFile):
            return None

    async def keep(self, name: str, layout: Layout) -> None:
        """Keep a layout; if the disk refuses, it is worked out again after a restart."""
        await asyncio.to_thread(self._save, name, layout)
        key, _, generation = name.partition("-")
        self._kept(key, generation)

    def _save(self, name: str, layout: Layout) -> None:
        path = self._path(name)
        new = path.with_name(f"{name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.write_bytes(encode(layout))
            new.rename(path)
        except OSError as e:
            log.info("cache layout %s cannot be kept: %s", name, e)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name


class Watch:
    """A :class:`doma.cache.foresight.Foresight` that learns its file's layout when the metadata are here."""

    def __init__(self, layouts: Layouts, pages: PageFile, name: str, shown: str) -> None:
        self._layouts, self._pages = layouts, pages
        self._name, self._shown = name, shown
        self._sight = Sight(pages.size)
        self._waits: list[Span] = [_HEAD]
        self._learning = self._looked = False
        self._tries = self._reads = 0
        self._complete = False
        self._not_before = 0.0

    @property
    def weight(self) -> int:
        """Bytes of memory."""
        return self._sight.layout.weight if self._sight.layout else 0

    def seen(self, start: int, stop: int) -> Sequence[Span]:
        self._reads += 1
        if not self._reads % _COMPLETE:
            self._complete = self._pages.complete
        if self._complete:
            return ()
        if self._waits and not self._learning and self._worth_a_try():
            self._learning = True
            self._layouts.begin(self)
        return self._sight.seen(start, stop)

    def reach(self, stop: int) -> int:
        return self._sight.reach(stop)

    def forget(self) -> None:
        """Let the layout go from memory; it is read again from disk if the file is still read."""
        self._sight.learn(None)
        self._waits, self._looked = [_HEAD], False
        self._not_before = asyncio.get_running_loop().time() + _PAUSE

    async def learn(self) -> None:
        """Look for the layout on disk, else have it worked out of what is here."""
        try:
            if not self._looked:
                self._looked = True
                found = await asyncio.to_thread(self._layouts.load, self._name, self._pages.size)
                if found is not None:
                    self._take(found)
                    return
            self._tries += 1
            if await self._magic():
                layout = await self._layouts.helper.layout(self._shown, self._pages.size, self._read)
                self._take(layout)
            else:
                layout = self._nothing()
                self._waits = []
            await self._layouts.keep(self._name, layout)
        except Lacking as e:
            self._waits = e.spans[:_WAITS]
        except ServiceUnavailable:
            self._not_before = asyncio.get_running_loop().time() + _PAUSE
        except CorruptFile as e:
            log.info("cache: %s", e.message)
            self._waits = []
            await self._layouts.keep(self._name, self._nothing())
        finally:
            self._learning = False
            if self._tries >= _TRIES:
                self._waits = []

    def _take(self, layout: Layout) -> None:
        self._waits = list(layout.waits[:_WAITS])
        self._sight.learn(layout)
        self._layouts.learned(self)

    def _worth_a_try(self) -> bool:
        if self._looked and not any(self._pages.present(a, b) for a, b in self._waits):
            return False
        return self._not_before <= asyncio.get_running_loop().time()

    async def _magic(self) -> bool:
        """Whether it is a ROOT or Parquet file. Raises Lacking."""
        head = await self._read(*_HEAD)
        if head is None:
            raise Lacking([_HEAD])
        return head[:4] in (b"root", b"PAR1")

    async def _read(self, start: int, stop: int) -> bytes | None:
        """Bytes that are here; nothing is fetched."""
        parts = []
        for at in range(start, stop, PIECE):
            end = min(at + PIECE, stop)
            if not self._pages.present(at, end):
                return None
            run = pages_of(at, end)
            buffer, missing, _ = await self._pages.load(run)
            if missing:
                return None
            parts.append(bytes(buffer[at - run[0] * PAGE : end - run[0] * PAGE]))
        return b"".join(parts)

    def _nothing(self) -> Layout:
        return compose(self._pages.size, (), np.empty((0, 4), np.int64))

"""The cache knows columns: learns a file's layout from its readers, fetches ahead, survives hostile files."""

import asyncio
import io
import os
import random
import signal
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from doma.auth.model import bearer
from doma.cache.extents import PAGE, joined, pages_of
from doma.cache.layout import Layout
from doma.cache.layout_helper import Helper, Lacking
from doma.cache.layout_read import read_layout
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import BadQuery, CorruptFile, ServiceUnavailable, UnknownColumn
from doma.store.memory import MemoryStore

COLUMNS, CLUSTERS, ROWS = 12, 6, 3000


def table(cluster):
    rng = np.random.default_rng(cluster)
    return {f"c{n:02d}": rng.normal(size=ROWS) for n in range(COLUMNS)}


class Sink(io.BytesIO):
    def close(self):
        """Stay: uproot closes what it is given."""


def tree(directory=None, rows=table):
    sink = Sink()
    with uproot.recreate(sink, compression=None) as file:
        place = file.mkdir(directory) if directory else file
        made = place.mktree("Events", dict.fromkeys(rows(0), "f8"))
        for cluster in range(CLUSTERS):
            made.extend(rows(cluster))
    return sink.getvalue()


def ntuple():
    sink = Sink()
    with uproot.recreate(sink, compression=None) as file:
        file.mkrntuple("Events", table(0))
        for cluster in range(1, CLUSTERS):
            file["Events"].extend(table(cluster))
    return sink.getvalue()


def parquet():
    sink = Sink()
    with pq.ParquetWriter(sink, pa.table(table(0)).schema, compression="none") as writer:
        for cluster in range(CLUSTERS):
            writer.write_table(pa.table(table(cluster)))
    return sink.getvalue()


FILES = {"tree": tree, "ntuple": ntuple, "parquet": parquet}


class Whole:
    """A file that is all here."""

    def __init__(self, data):
        self._data, self.size, self.used = data, len(data), []

    def take(self, start, stop):
        self.used.append((start, stop))
        return self._data[start:stop]

    def file(self):
        source, at = self, io.BytesIO(self._data)

        class File(io.RawIOBase):
            def seek(self, *where):
                return at.seek(*where)

            def tell(self):
                return at.tell()

            def read(self, size=-1):
                start = at.tell()
                source.used.append((start, start + size))
                return at.read(size)

        return File()


@pytest.fixture(scope="module")
def made():
    """Each kind of file with its layout, read directly."""
    files = {kind: write() for kind, write in FILES.items()}
    return {kind: (data, read_layout(Whole(data))) for kind, data in ((k, files[k]) for k in files)}


@pytest.fixture(scope="module")
def helper():
    helper = Helper(seconds=20)
    yield helper
    asyncio.run(helper.close())


class Counting(MemoryStore):
    def __init__(self):
        super().__init__()
        self.asked = []

    async def open(self, path):
        return Line(self.asked, await super().open(path))


class Line:
    def __init__(self, asked, inner):
        self._asked, self._inner, self.stat = asked, inner, inner.stat
        self.known, self.hashed, self.close = inner.known, inner.hashed, inner.close

    async def read(self, start, stop):
        self._asked.append((start, stop))
        return await self._inner.read(start, stop)


class Caches:
    def __init__(self, root, helper):
        self.origin, self._root, self._helper, self._open = Counting(), root, helper, []

    def __call__(self, least=0, **config):
        cache = CacheStore(self._root, Origins(self.origin, name="site"), Cache(**config))
        if cache.layouts is not None:
            cache.layouts.least = least
            cache.layouts.helper, cache.own = self._helper, cache.layouts.helper
        self._open.append(cache)
        return cache

    async def put(self, path, data):
        upload = await self.origin.create(path, size=len(data))
        await upload.write(data)
        await upload.commit()

    async def stop(self, cache):
        self._open.remove(cache)
        if cache.layouts is not None:
            cache.layouts.helper = cache.own
        await cache.close()

    def kept(self):
        return [path for path in (self._root / "layouts").glob("*/*") if path.suffix != ".new"]


@pytest.fixture
async def caches(tmp_path, helper):
    caches = Caches(tmp_path / "cache", helper)
    yield caches
    for cache in list(caches._open):
        await caches.stop(cache)


async def until(condition):
    """Let the loop run until something has happened; the test's own timeout ends what never does."""
    while not condition():
        await asyncio.sleep(0.005)


async def read(cache, spans, path="/f"):
    """Each span by a reader of its own, as over HTTP."""
    for start, stop in spans:
        reader = await cache.open(path)
        try:
            await reader.read(start, stop)
        finally:
            await reader.close()


async def missing(cache, spans, path="/f"):
    reader = await cache.open(path)
    try:
        return sum(reader.missing(start, stop) for start, stop in spans)
    finally:
        await reader.close()


def column(layout: Layout, name, cluster):
    (number,) = [n for n, (_, found) in enumerate(layout.names) if found.split(".")[0] == name][:1]
    return layout.ranges([number], [cluster])


@pytest.mark.parametrize("kind", FILES)
async def test_the_next_clusters_of_the_columns_that_are_read_come_unasked(caches, made, kind):
    data, layout = made[kind]
    await caches.put("/f", data)
    cache = caches()
    await read(cache, layout.metadata)
    await read(cache, column(layout, "c03", 0))
    await until(caches.kept)
    asked = {page for a, b in caches.origin.asked for page in range(a // PAGE, -(-b // PAGE))}
    client = [*layout.metadata, *column(layout, "c03", 0)]
    assert asked == {page for a, b in client for page in range(*pages_of(a, b))}, "learning fetched something"
    assert cache.stats().bytes["prefetch"] == 0
    await read(cache, column(layout, "c03", 1))
    await until(lambda: cache.stats().bytes["prefetch"] > 0)
    await until(lambda: not cache.catalogue.get(cache.place("/f").key).fetcher.busy)
    assert await missing(cache, column(layout, "c03", 2)) == 0
    others = [span for n in range(COLUMNS) if n != 3 for span in column(layout, f"c{n:02d}", 2)]
    inner = [(a + PAGE, b - PAGE) for a, b in others]
    assert await missing(cache, inner) == sum(b - a for a, b in (pages_of(*span) for span in inner))
    before = cache.stats().bytes["origin"]
    await read(cache, column(layout, "c03", 2))
    assert cache.stats().bytes["prefetched"] >= ROWS * 8 - 2 * PAGE
    await until(lambda: cache.stats().bytes["origin"] > before)  # the next one, unasked again


async def test_a_layout_is_read_again_after_a_restart(caches, made, helper):
    data, layout = made["tree"]
    await caches.put("/f", data)
    cache = caches()
    await read(cache, [*layout.metadata, *column(layout, "c00", 0)])
    await until(caches.kept)
    await caches.stop(cache)
    dead = Helper(memory=0)
    await dead.close()  # nobody could work it out anew
    caches._helper = dead
    cache = caches()
    await read(cache, [span for k in (2, 3) for span in column(layout, "c05", k)])
    while not cache.stats().bytes["prefetch"]:
        await read(cache, column(layout, "c05", 3))
        await asyncio.sleep(0.005)
    await until(lambda: not cache.catalogue.get(cache.place("/f").key).fetcher.busy)
    assert await missing(cache, column(layout, "c05", 4)) == 0


async def test_a_layout_without_its_object_is_cleared_away(caches, made):
    data, layout = made["tree"]
    await caches.put("/f", data)
    cache = caches()
    await read(cache, [*layout.metadata, *column(layout, "c00", 0)])
    await until(caches.kept)
    (kept,) = caches.kept()
    await caches.stop(cache)
    orphan = kept.parent / f"{kept.name[:64].translate(str.maketrans('0123', '1230'))}-{'0' * 16}"
    orphan.write_bytes(kept.read_bytes())
    os.utime(orphan, (1e9, 1e9))
    cache = caches()
    await read(cache, column(layout, "c00", 0))
    await until(lambda: not orphan.exists())
    assert kept.exists()
    key, _, generation = kept.name.partition("-")
    cache.layouts.drop(key, generation)
    cache.layouts.drop(key, generation)
    assert not kept.exists()


@pytest.mark.parametrize("config", [{"foresight": False}, {"least": 1 << 40}])
async def test_it_can_be_turned_off_and_small_files_are_left_alone(caches, made, config):
    data, layout = made["tree"]
    await caches.put("/f", data)
    cache = caches(**config)
    await read(cache, layout.metadata)
    await read(cache, [span for k in range(CLUSTERS) for span in column(layout, "c01", k)])
    assert not cache.stats().bytes["prefetch"]
    assert not caches.kept()


async def test_what_is_no_columnar_file_is_looked_at_once(caches, helper):
    await caches.put("/f", random.Random(1).randbytes(100_000))
    cache = caches()
    await read(cache, [(0, 1000)])
    await until(caches.kept)
    before = helper.asked
    await read(cache, [(n * 1000, n * 1000 + 1000) for n in range(20)])
    assert helper.asked == before
    assert not cache.stats().bytes["prefetch"]


@pytest.mark.parametrize("kind", FILES)
async def test_columns_of_a_cold_file_are_found_by_its_metadata_alone(caches, made, kind):
    data, layout = made[kind]
    await caches.put("/f", data)
    cache = caches()
    reader = await cache.open("/f")
    fetcher = cache.catalogue.get(cache.place("/f").key).fetcher
    spans = await cache.layouts.columns_ranges(fetcher, ["c0[12]"])
    wanted = [span for c in ("c01", "c02") for k in range(CLUSTERS) for span in column(layout, c, k)]
    assert all(any(a <= start and stop <= b for a, b in spans) for start, stop in wanted)
    total = sum(b - a for a, b in [*wanted, *layout.metadata])
    assert sum(b - a for a, b in spans) <= total + PAGE * len(layout.metadata)
    fetched = joined(pages_of(*span) for span in caches.origin.asked)
    assert sum(b - a for a, b in fetched) * PAGE <= sum(b - a + 10 * PAGE for a, b in layout.metadata)
    with pytest.raises(UnknownColumn, match="/f: no column 'c1O'; nearest: c1"):
        await cache.layouts.columns_ranges(fetcher, ["c1O"])
    if kind != "parquet":
        with pytest.raises(UnknownColumn, match="no tree 'Event'; nearest: Events"):
            await cache.layouts.columns_ranges(fetcher, ["c01"], "Event")
    await reader.close()


async def test_columns_of_what_has_none_are_refused(caches):
    await caches.put("/f", bytes(10_000))
    cache = caches()
    reader = await cache.open("/f")
    fetcher = cache.catalogue.get(cache.place("/f").key).fetcher
    for _ in range(2):
        with pytest.raises(BadQuery, match="/f: its columns cannot be told"):
            await cache.layouts.columns_ranges(fetcher, ["*"])
    await reader.close()


async def asked(helper, data):
    """What the helper makes of bytes that are all here."""

    async def read(start, stop):
        return data[start:stop]

    return await helper.layout("/f", len(data), read)


@pytest.mark.parametrize("kind", FILES)
async def test_the_helper_finds_what_is_found_without_it(made, helper, kind):
    data, layout = made[kind]
    found = await asked(helper, data)
    assert found.names == layout.names
    assert np.array_equal(found.starts, layout.starts)
    assert np.array_equal(found.clusters, layout.clusters)
    assert set(found.clusters.tolist()) == set(range(CLUSTERS))


async def test_it_asks_for_what_it_lacks_until_it_knows(made, helper):
    data, layout = made["ntuple"]
    here = []

    async def read(start, stop):
        return data[start:stop] if any(a <= start and stop <= b for a, b in here) else None

    for _ in range(20):
        try:
            found = await helper.layout("/f", len(data), read)
        except Lacking as e:
            here += e.spans
        else:
            break
    assert len(here) == len(set(here)), "asked for what it had"
    assert np.array_equal(found.starts, layout.starts)


async def test_metadata_are_read_in_the_name_of_who_asked(made, helper):
    (data, _), seen = made["tree"], []

    async def read(start, stop):
        seen.append(bearer.get())
        return data[start:stop]

    for token in ("ada", "bob"):
        held = bearer.set(token)
        try:
            await helper.layout("f", len(data), read)
        finally:
            bearer.reset(held)
        assert set(seen) == {token}
        seen.clear()


async def test_a_killed_helper_costs_one_file_and_comes_back(made, helper):
    data, layout = made["tree"]
    await asked(helper, data)

    async def killing(start, stop):
        os.kill(helper.pid, signal.SIGKILL)
        return data[start:stop]

    with pytest.raises(CorruptFile, match="the helper died"):
        await helper.layout("/f", len(data), killing)
    assert len((await asked(helper, data)).starts) == len(layout.starts)
    os.kill(helper.pid, signal.SIGKILL)  # while it is idle: no file's fault
    assert len((await asked(helper, data)).starts) == len(layout.starts)


@pytest.mark.parametrize("kind", FILES)
async def test_damaged_metadata_give_a_sound_layout_or_none(made, helper, kind):
    data, layout = made[kind]
    rng = random.Random(kind)
    places = [n for a, b in layout.metadata for n in range(a, b)]
    outcomes = set()
    for _ in range(40):
        bad = bytearray(data)
        for at in rng.sample(places, rng.choice((1, 3, 30))):
            bad[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            found = await asked(helper, bytes(bad))
        except (CorruptFile, Lacking) as e:
            outcomes.add(type(e))
            continue
        outcomes.add(Layout)
        assert (found.starts >= 0).all()
        assert (found.stops <= len(data)).all()
        assert (np.diff(found.starts) >= 0).all()
    assert CorruptFile in outcomes


def cut(data):
    return data[: len(data) * 2 // 3]


def lying_seek(data):
    """Every basket at 2**62."""
    layout = read_layout(Whole(data))
    for start in layout.starts.tolist():
        data = data.replace(struct.pack(">q", start), struct.pack(">q", 1 << 62))
    return data


def billions(data):
    """A number of baskets and entries that no file has."""
    return data.replace(struct.pack(">i", CLUSTERS), struct.pack(">i", 1_000_000_000))


def bomb(data):
    """The tree's key says, and has, two gigabytes of compressed zeros."""
    import cramjam

    zeros = bytes(cramjam.zstd.compress(bytes(0xFFFFFF)))
    size = len(zeros)
    block = b"ZS\x01" + size.to_bytes(3, "little") + (0xFFFFFF).to_bytes(3, "little") + zeros
    with uproot.open(io.BytesIO(data)) as file:
        key = file.key("Events")
        seek, length, keylen = key.fSeekKey, key.fNbytes, key.fKeylen
    head = data[seek : seek + keylen]
    count = 128
    new = (
        struct.pack(">i", keylen + count * len(block)) + head[4:6] + struct.pack(">i", 0x7FFFFFF0) + head[10:]
    )
    moved = data.replace(struct.pack(">i", length) + head[4:6], new[:4] + new[4:6]).replace(
        head[6:10] + head[10:18], new[6:10] + head[10:18]
    )
    moved = moved.replace(struct.pack(">i", seek), struct.pack(">i", len(data)))
    return moved + new[:keylen] + block * count


def endless(data):
    """A directory whose keys are those of the directory it is in."""
    data = tree(directory="d")
    with uproot.open(io.BytesIO(data)) as file:
        outer, inner = file.fSeekKeys, file["d"].fSeekKeys
        return data.replace(struct.pack(">i", inner), struct.pack(">i", outer))


@pytest.mark.parametrize("harm", [cut, lying_seek, billions, bomb, endless])
async def test_a_hostile_file_is_read_as_any_other_and_looked_at_once(caches, made, harm, helper):
    data = harm(made["tree"][0])
    await caches.put("/f", data)
    cache = caches()
    step = 1 << 20
    got = bytearray()
    reader = await cache.open("/f")
    for start in range(0, len(data), step):
        got += await reader.read(start, min(start + step, len(data)))
    await reader.close()
    assert bytes(got) == data
    await read(cache, [(0, 100)])
    await until(caches.kept)
    before = helper.asked
    for start in range(0, len(data) - 5000, len(data) // 50):
        await read(cache, [(start, start + 5000)])
    assert helper.asked == before
    fetcher = cache.catalogue.get(cache.place("/f").key).fetcher
    ranges = cache.layouts.columns_ranges(fetcher, ["c00"])
    if harm in (cut, lying_seek):  # its metadata are sound as such
        assert all(0 <= start < stop <= len(data) for start, stop in await ranges)
    else:
        with pytest.raises(BadQuery, match="/f: its columns cannot be told; prestage it whole"):
            await ranges


async def test_a_file_that_takes_too_long_is_given_up():
    slow = Helper(seconds=1)
    data = tree()
    try:
        await asked(slow, data)
        os.kill(slow.pid, signal.SIGSTOP)
        with pytest.raises(CorruptFile, match="took too long"):
            await asked(slow, data)
        assert len((await asked(slow, data)).starts) == COLUMNS * CLUSTERS
    finally:
        await slow.close()


async def test_where_no_helper_can_be_had_the_file_is_not_blamed(caches, made):
    data, layout = made["tree"]
    await caches.put("/f", data)
    dead = Helper()
    await dead.close()
    caches._helper = dead
    cache = caches()
    await read(cache, [*layout.metadata, *(span for k in range(4) for span in column(layout, "c00", k))])
    fetcher = cache.catalogue.get(cache.place("/f").key).fetcher
    with pytest.raises(ServiceUnavailable, match="try later"):
        await cache.layouts.columns_ranges(fetcher, ["c00"])
    await caches.stop(cache)
    assert not caches.kept()


async def test_only_so_many_layouts_are_in_memory_and_the_oldest_goes_first(caches, made, monkeypatch):
    data, layout = made["tree"]
    monkeypatch.setattr("doma.cache.columns.MEMORY", layout.weight * 3 // 2)
    cache, watches = caches(), []
    for n in range(3):
        await caches.put(f"/{n}", data)
        await read(cache, [*layout.metadata, *column(layout, "c00", 0)], f"/{n}")
        await until(lambda n=n: len(caches.kept()) == n + 1)
        watches.append(cache.catalogue.get(cache.place(f"/{n}").key).fetcher._foresight)
    assert [watch.weight > 0 for watch in watches] == [False, False, True]
    assert watches[0].seen(*column(layout, "c00", 1)[0]) == ()

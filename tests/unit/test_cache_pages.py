"""The page file: what pgread sends of it, and what happens when its pages leave memory."""

import asyncio
import mmap
import os
import random
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from crc32c import crc32c

from doma.cache.extents import PAGE
from doma.cache.pages import PageFile
from doma.cache.resident import Resident, without_read_ahead
from doma.net.xroot_pages import interleaved, separated

SIZE = 40 * PAGE + 1234


@pytest.fixture
def content():
    return random.Random(3).randbytes(SIZE)


@pytest.fixture
async def pages(tmp_path, content):
    pages = PageFile(tmp_path / "pages", SIZE)
    await pages.save(0, content)
    await settle(pages)
    return pages


async def settle(pages):
    """Have every page checked: once the file's change time is older than a clock tick."""
    await asyncio.sleep(0.03)
    _, missing, bad = await pages.load((0, pages.count))
    assert not missing
    assert not bad


RANGES = [
    (0, SIZE),
    (0, PAGE),
    (PAGE, 5 * PAGE),
    (100, 200),
    (100, PAGE),
    (4095, 4097),
    (10, 3 * PAGE + 7),
    (SIZE - 1, SIZE),
    (39 * PAGE, SIZE),
    (40 * PAGE, SIZE - 1),
    (7, 7),
]


@pytest.mark.parametrize(("start", "stop"), RANGES)
async def test_pages_go_out_behind_their_checksums_as_the_protocol_lays_them(pages, content, start, stop):
    wanted = interleaved(start, content[start:stop])
    assert pages.interleaved(start, stop) == wanted
    assert pages.interleaved(start, stop, content[start:stop]) == wanted
    assert separated(start, bytes(wanted)) == (content[start:stop], [])


async def test_the_checksum_that_goes_out_is_the_stored_one_not_one_of_what_was_read(pages, content):
    wrong = bytearray(content)
    wrong[3 * PAGE + 9] ^= 1
    wrong[SIZE - 1] ^= 1
    data, bad = separated(0, bytes(pages.interleaved(0, SIZE, wrong)))
    assert data == wrong
    assert [offset for offset, _ in bad] == [3 * PAGE, 40 * PAGE]


async def test_a_page_that_is_not_here_goes_out_with_a_checksum_of_its_own(pages, content):
    pages.forget(2)
    assert pages.interleaved(0, SIZE) is None
    fetched = bytearray(content)
    fetched[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    wire = pages.interleaved(0, SIZE, fetched)
    assert separated(0, bytes(wire)) == (bytes(fetched), [])


def test_c13_pages_go_out_with_their_checksums_also_while_they_are_being_written(tmp_path):
    """A thread that sets a sum and then the mark may come between any two steps of who reads them."""
    content = random.Random(4).randbytes(64 * PAGE)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(20):
            pages = PageFile(tmp_path / str(number), len(content))
            writing = threading.Thread(target=pages._write, args=(0, content))
            writing.start()
            while writing.is_alive():
                _, bad = separated(0, pages.interleaved(0, len(content), content))
                assert not bad
            writing.join()
    finally:
        sys.setswitchinterval(before)


async def test_pages_that_left_memory_are_checked_before_they_are_served_again(tmp_path, content):
    path = tmp_path / "pages"
    pages = PageFile(path, SIZE)
    await pages.save(0, content)
    os.fsync(file := os.open(path, os.O_RDONLY))
    await settle(pages)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # pages that nobody has mapped yet do leave
    os.close(file)
    if pages.view(0, SIZE) is not None:
        pytest.skip("this file system keeps its pages in memory")
    assert pages.views([(0, 10), (PAGE, 2 * PAGE)]) is None
    assert pages.fileno(0, PAGE) is None
    _, missing, bad = await pages.load((4, 6))
    assert (missing, bad) == ([], [])
    assert pages.view(4 * PAGE, 6 * PAGE) == content[4 * PAGE : 6 * PAGE]
    assert pages.view(3 * PAGE, 4 * PAGE) is None  # nothing came back beside them unseen
    assert pages.view(6 * PAGE, 7 * PAGE) is None
    await settle(pages)
    assert pages.view(0, SIZE) == content


async def test_pages_that_a_client_doubts_are_checked_again(pages, content):
    pages.doubt(PAGE + 1, 2 * PAGE + 1)
    assert pages.view(PAGE, 2 * PAGE) is None
    assert pages.view(2 * PAGE, 2 * PAGE + 1) is None
    assert pages.view(0, PAGE) == content[:PAGE]
    await pages.load((1, 3))
    assert pages.view(0, SIZE) == content
    assert pages.count == 41


async def test_several_views_are_those_of_each(pages, content):
    spans = [(0, 10), (5 * PAGE + 1, 7 * PAGE), (SIZE - 1, SIZE)]
    assert pages.views(spans) == [content[start:stop] for start, stop in spans]
    pages.forget(6)
    assert pages.views(spans) is None
    await settle_present(pages)
    assert pages.views(spans[:1]) == [content[:10]]
    assert pages.views(spans) is None


async def settle_present(pages):
    await asyncio.sleep(0.03)
    await pages.load((0, pages.count))


async def test_pages_of_a_long_file_are_looked_at_across_the_units_that_the_kernel_is_asked_in(tmp_path):
    size = (34 << 20) + 5
    pages = PageFile(tmp_path / "long", size)
    data = random.Random(4).randbytes(1 << 20)
    for at in (0, 16 << 20, 15 << 20, 33 << 20):
        await pages.save(at // PAGE, data)
    await asyncio.sleep(0.03)
    for at in (15 << 20, 16 << 20, 33 << 20):
        await pages.load((at // PAGE, (at + (1 << 20)) // PAGE))
    edge = 16 << 20
    assert pages.view(edge - 10, edge + 10) == data[-10:] + data[:10]
    assert pages.view(edge - (1 << 20), edge + (1 << 20)) == data + data
    assert pages.view(34 << 20, size) is None
    assert pages.view(size - 5 - 7, size - 5) == data[-7:]
    assert pages.view(0, 10) is None


async def test_what_a_foreign_hand_wrote_is_noticed_though_it_is_in_memory(pages, tmp_path, content):
    assert pages.view(0, SIZE) == content
    with (tmp_path / "pages").open("r+b") as file:
        file.seek(5 * PAGE)
        file.write(b"x")
    assert pages.view(0, SIZE) is None
    _, missing, bad = await pages.load((0, pages.count))
    assert bad == [5]
    assert missing == [(5, 6)]
    assert crc32c(content[:PAGE]) == int.from_bytes(bytes(pages.interleaved(0, PAGE, content[:PAGE])[:4]))


def test_what_leaves_memory_is_noticed_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        resident = Resident(file.fileno(), 64 * PAGE)
        assert resident.holds(0, 64 * PAGE)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with suppress(OSError):
            if os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT):
                pytest.skip("this file system keeps its pages in memory")
        assert not resident.holds(0, 64 * PAGE)
        without_read_ahead(file.fileno())
        os.pread(file.fileno(), 8 * PAGE, 16 * PAGE)
        assert resident.holds(16 * PAGE + 1, 24 * PAGE)
        assert not resident.holds(16 * PAGE, 25 * PAGE)
        assert not resident.holds(15 * PAGE, 16 * PAGE + 1)


async def test_a_file_system_that_refuses_to_be_asked_while_reading_is_asked_before(content):
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no file system in memory here")
    with tempfile.TemporaryDirectory(dir=memory, prefix="doma-") as folder:
        pages = PageFile(Path(folder) / "pages", SIZE)
        await pages.save(0, content)
        await settle(pages)
        assert pages.view(0, SIZE) == content
        assert pages.views([(0, 10), (PAGE, 3 * PAGE)]) == [content[:10], content[PAGE : 3 * PAGE]]
        assert pages.fileno(0, SIZE) is not None


async def test_bytes_that_were_served_take_no_memory_of_this_process(tmp_path):
    size = 64 << 20
    pages = PageFile(tmp_path / "large", size)
    data = random.Random(4).randbytes(1 << 20)
    for at in range(0, size, len(data)):
        await pages.save(at // PAGE, data)
    await asyncio.sleep(0.03)
    for at in range(0, size, len(data)):
        await pages.load((at // PAGE, (at + len(data)) // PAGE))
    before = resident_size()
    for at in range(0, size, len(data)):
        assert pages.view(at, at + len(data)) == data
        assert pages.interleaved(at, at + len(data)) is not None
        assert pages.fileno(at, at + len(data)) is not None
    assert resident_size() - before < 16 << 20


def resident_size():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


async def test_no_more_is_given_out_of_memory_at_once_than_a_request_may_take(tmp_path):
    size = 4 << 20
    pages = PageFile(tmp_path / "large", size)
    await pages.save(0, bytes(size))
    await asyncio.sleep(0.03)
    await pages.load((0, pages.count))
    assert pages.view(0, 2 << 20) == bytes(2 << 20)
    assert pages.view(0, (2 << 20) + 1) is None
    assert pages.views([(0, 1 << 20)] * 2) is not None
    assert pages.views([(0, 1 << 20)] * 3) is None

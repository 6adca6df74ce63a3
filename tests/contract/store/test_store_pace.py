"""A disk that becomes slow is asked in threads, and on the event loop again when it is quick."""

import math

import pytest

from doma.store import pace
from doma.store.file import FileStore
from doma.store.pace import Pace


@pytest.fixture
def usual(monkeypatch):
    monkeypatch.setattr(pace, "SLOW", 0.020)
    monkeypatch.setattr(pace, "QUICK", 0.004)


def test_one_late_call_changes_nothing_and_two_in_a_row_turn_to_threads(usual):
    disk = Pace()
    for took, quick in ((1.0, True), (0.0, True), (1.0, True), (1.0, False)):
        disk.called(took)
        assert disk.quick is quick


def test_a_quick_call_in_a_thread_turns_back_and_a_doubtful_one_changes_nothing(usual):
    disk = Pace()
    for took, quick in (
        (0.010, True),
        (0.010, True),
        (1.0, True),
        (1.0, False),
        (0.010, False),
        (0.001, True),
    ):
        disk.threaded(took)
        assert disk.quick is quick
    disk.called(1.0)
    assert disk.quick  # what was late before the quick one is forgotten


@pytest.fixture
async def store(tmp_path):
    made = FileStore(tmp_path / "store", fsync=False)
    await made.make_dir("/d")
    if made.land("/d/probe", b"probe") is None:
        pytest.skip("this file system makes no files without a name")
    yield made
    await made.close()


@pytest.fixture
def disk(monkeypatch):
    def be(*, slow: bool) -> None:
        monkeypatch.setattr(pace, "SLOW", -1.0 if slow else math.inf)
        monkeypatch.setattr(pace, "QUICK", -1.0 if slow else math.inf)

    return be


async def put(store, path):
    upload = await store.create(path)
    await upload.write(b"data")
    return upload.inline, await upload.commit()


async def test_a_slow_disk_gets_every_call_in_threads_until_it_is_quick_again(store, disk):
    disk(slow=True)
    await store.stat("/d/probe")
    assert store.land("/d/one", b"1") is not None  # the second late call: done, and the last of its kind
    assert store.land("/d/two", b"2") is None
    assert store.warm("/d/probe") is None
    assert store.remove("/d/one") is None
    inline, _ = await put(store, "/d/two")
    assert not inline
    assert (await store.stat("/d/two")).size == 4
    assert store.land("/d/three", b"3") is None
    disk(slow=False)
    await store.stat("/d/two")  # in a thread, and quick
    assert store.land("/d/three", b"3") is not None
    assert store.warm("/d/probe") is not None
    assert store.remove("/d/three") == 1
    assert (await put(store, "/d/four"))[0]


async def test_a_single_late_call_leaves_small_files_on_the_short_road(store, disk):
    for path in ("/d/a", "/d/b", "/d/c"):
        disk(slow=True)
        await store.stat("/d/probe")
        disk(slow=False)
        assert store.land(path, b"x") is not None

"""A client's own properties in every engine that keeps them (``CanAnnotate``)."""

import errno
import os

import pytest

from doma.core.errors import LimitExceeded, NotFound, Refused
from doma.store.file import FileStore
from doma.store.memory import MemoryStore
from doma.store.protocol import CanAnnotate

COLOUR = {"{urn:x}colour": "blue\n ü <b/>"}
LARGE = {"{urn:x}text": "long " * 6000}


@pytest.fixture(params=["memory", "attributes", "no attributes"])
async def store(request, tmp_path, monkeypatch):
    if request.param == "no attributes":

        def refuse(*_, **__):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr(os, "setxattr", refuse)
    made = MemoryStore() if request.param == "memory" else FileStore(tmp_path / "s", fsync=False)
    assert isinstance(made, CanAnnotate)
    yield made
    await made.close()


async def put(store, path, data=b"x"):
    upload = await store.create(path)
    await upload.write(data)
    return await upload.commit()


async def test_properties_are_set_changed_and_removed(store):
    await put(store, "/f")
    await store.make_dir("/d")
    for path in ("/f", "/d", "/"):
        assert await store.annotations(path) == {}
        await store.annotate(path, {**COLOUR, "size": "large"})
        assert await store.annotations(path) == {**COLOUR, "size": "large"}
        await store.annotate(path, {"size": None, "never": None, "shape": ""})
        assert await store.annotations(path) == {**COLOUR, "shape": ""}
        await store.annotate(path, LARGE)
        assert await store.annotations(path) == {**COLOUR, "shape": "", **LARGE}
        await store.annotate(path, {"{urn:x}text": "short"})
        assert await store.annotations(path) == {**COLOUR, "shape": "", "{urn:x}text": "short"}
        await store.annotate(path, dict.fromkeys([*COLOUR, "shape", "{urn:x}text"]))
        assert await store.annotations(path) == {}


async def test_a_change_does_not_touch_the_content(store):
    before = await put(store, "/f")
    await store.annotate("/f", COLOUR)
    assert await store.stat("/f") == before


@pytest.mark.parametrize("notes", [COLOUR, LARGE], ids=["small", "large"])
async def test_properties_follow_a_rename_and_go_with_their_thing(store, notes):
    await store.make_dir("/d")
    await put(store, "/d/f")
    await store.annotate("/d", notes)
    await store.annotate("/d/f", notes)
    await store.rename("/d", "/e")
    assert await store.annotations("/e") == await store.annotations("/e/f") == notes
    assert [entry.path async for entry in store.list("/e")] == ["/e/f"]
    await store.rename("/e/f", "/f")
    assert await store.annotations("/f") == notes
    await put(store, "/f", b"other")
    assert await store.annotations("/f") == {}
    await put(store, "/g")
    await store.annotate("/g", notes)
    await store.rename("/g", "/f")
    assert await store.annotations("/f") == notes
    await store.delete("/f")
    await put(store, "/f")
    assert await store.annotations("/f") == {}
    await store.delete("/e")
    await store.make_dir("/e")
    assert await store.annotations("/e") == {}


async def test_what_cannot_be_kept_changes_nothing(store):
    await put(store, "/f")
    await store.annotate("/f", COLOUR)
    with pytest.raises(LimitExceeded):
        await store.annotate("/f", {"other": "y", "much": "x" * (64 << 10)})
    assert await store.annotations("/f") == COLOUR
    with pytest.raises(NotFound):
        await store.annotations("/none")
    with pytest.raises(NotFound):
        await store.annotate("/none", COLOUR)


async def test_the_properties_of_a_file_outlive_the_process(tmp_path):
    store = FileStore(tmp_path, fsync=False)
    await put(store, "/f")
    await store.annotate("/f", COLOUR)
    await store.annotate("/", LARGE)
    await store.close()
    again = FileStore(tmp_path, read_only=True)
    assert await again.annotations("/f") == COLOUR
    assert await again.annotations("/") == LARGE
    with pytest.raises(Refused):
        await again.annotate("/f", COLOUR)
    await again.close()


async def test_a_listing_tells_what_surely_has_no_properties(tmp_path):
    store = FileStore(tmp_path, fsync=False)
    for name in ("/none", "/small", "/large"):
        await put(store, name)
    await store.annotate("/small", COLOUR)
    await store.annotate("/large", LARGE)
    assert [entry.annotated async for entry in store.list("/")] == [True, False, True]
    await store.close()

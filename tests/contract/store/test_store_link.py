"""Second names of a file in every engine that gives them (``CanLink``)."""

import asyncio

import pytest

from doma.core.errors import Conflict, NotFound, PreconditionFailed, StorageFull
from doma.store.file import FileStore
from doma.store.memory import MemoryStore
from doma.store.protocol import CanLink
from doma.store.quota import Quota


@pytest.fixture(params=["file", "memory"])
async def store(request, tmp_path):
    quota = Quota({"/": 100})
    file = request.param == "file"
    made = FileStore(tmp_path / "data", fsync=False, quota=quota) if file else MemoryStore(quota=quota)
    assert isinstance(made, CanLink)
    yield made
    await made.close()


async def put(store, path, data):
    upload = await store.create(path, size=len(data))
    await upload.write(data)
    return await upload.commit()


async def get(store, path):
    reader = await store.open(path)
    try:
        return bytes(await reader.read(0, reader.stat.size))
    finally:
        await reader.close()


async def test_a_second_name_has_the_same_content_version_and_checksums(store):
    first = await put(store, "/a/f", b"content")
    second = await store.link("/a/f", "/b/c/g", version=first.version)
    assert (second.path, second.size, second.version) == ("/b/c/g", 7, first.version)
    assert await get(store, "/b/c/g") == b"content"
    assert (await store.stat("/b/c/g")).checksums == (await store.stat("/a/f")).checksums
    assert [stat.path async for stat in store.list("/b/c")] == ["/b/c/g"]


@pytest.mark.parametrize("end", ["deleted", "replaced"])
@pytest.mark.parametrize("which", [("/f", "/g"), ("/g", "/f")])
async def test_the_end_of_one_name_leaves_the_other(store, end, which):
    gone, left = which
    first = await put(store, "/f", b"content")
    await store.link("/f", "/g", version=first.version)
    if end == "deleted":
        await store.delete(gone)
        with pytest.raises(NotFound):
            await store.stat(gone)
    else:
        await put(store, gone, b"new")
        assert await get(store, gone) == b"new"
    assert await get(store, left) == b"content"
    stat = await store.stat(left)
    assert (stat.version, dict(stat.checksums)) == (first.version, dict(first.checksums))


async def test_what_is_not_there_another_or_in_the_way_is_refused_and_nothing_changes(store):
    first = await put(store, "/f", b"content")
    await put(store, "/taken", b"mine")
    await put(store, "/file", b"")
    with pytest.raises(NotFound):
        await store.link("/none", "/g", version=first.version)
    with pytest.raises(NotFound):
        await store.link("/", "/g", version=first.version)
    with pytest.raises(PreconditionFailed):
        await store.link("/f", "/g", version="another")
    with pytest.raises(PreconditionFailed):
        await store.link("/f", "/taken", version=first.version)
    with pytest.raises(Conflict):
        await store.link("/f", "/file/below", version=first.version)
    assert await get(store, "/taken") == b"mine"
    with pytest.raises(NotFound):
        await store.stat("/g")


async def test_of_many_at_once_one_gets_the_name(store):
    first = await put(store, "/f", b"content")
    done = await asyncio.gather(
        *(store.link("/f", "/g", version=first.version) for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(found, PreconditionFailed) for found in done) == 1
    assert await get(store, "/g") == b"content"


async def test_each_name_counts_for_quotas(store):
    first = await put(store, "/f", b"x" * 40)
    await store.link("/f", "/g", version=first.version)
    with pytest.raises(StorageFull):
        await store.link("/f", "/h", version=first.version)
    assert (await store.space_at("/")).used == 80
    await store.delete("/f")
    assert (await store.space_at("/")).used == 40
    await store.link("/g", "/h", version=first.version)

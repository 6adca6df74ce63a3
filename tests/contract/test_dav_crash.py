"""The process dies before or after any call to the store while a tree is copied or moved over another one."""

import itertools

import pytest

from doma.store.wrap import Wrapped


class Died(BaseException):
    """The process is gone: no clean-up runs."""


class Dying(Wrapped):
    """Dies at the n-th call, before or after its effect; nothing works from then on."""

    def __init__(self, store, at, *, after):
        super().__init__(store)
        self.left, self.after = at, after

    async def around(self, call, work, *, again):
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            self.left = -1
            raise Died
        done = await work()
        if self.left == 0:
            self.left = -1
            raise Died
        return done


async def tree(store, path):
    """All files below a path."""
    found, waiting = {}, [path]
    while waiting:
        async for entry in store.list(waiting.pop()):
            if entry.is_dir:
                waiting.append(entry.path)
                continue
            reader = await store.open(entry.path)
            found[entry.path.removeprefix(path)] = bytes(await reader.read(0, entry.size))
    return found


OLD, NEW = {"/y": b"old", "/sub/z": b"older"}, {"/x": b"new", "/sub/z": b"newer"}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_no_tree_is_lost_whenever_the_process_dies(door, method, after):
    store = door.stores["site"]
    for number in itertools.count(1):
        top = f"/{number}"
        for name, files in (("old", OLD), ("new", NEW)):
            for path, data in files.items():
                await door.put(f"{top}/{name}{path}", data)
        object.__setattr__(door.site.endpoints["site"], "store", Dying(store, number, after=after))
        headers = {"destination": f"/site{top}/old", "overwrite": "T"}
        died = False
        try:
            await door.ask(method, f"/site{top}/new", headers=headers)
        except Died:
            died = True
        there = {e.path.removeprefix(top): await tree(store, e.path) async for e in store.list(top)}
        assert there.get("/old", NEW) in (OLD, NEW), "one whole tree stands there, or for a moment none"
        if not died:
            assert there["/old"] == NEW
            assert sorted(there) == (["/new", "/old"] if method == "COPY" else ["/old"])
            break
        whole = list(there.values())
        assert NEW in whole
        assert OLD in whole or there["/old"] == NEW, "the old one goes only when the new one has come"
        if method == "COPY":
            assert there["/new"] == NEW
        assert len(there) <= 3
    assert number > 5

"""A random walk over every call, against a dictionary: the store must agree at each step."""

import tempfile
import zlib
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from doma.core.errors import (
    AlreadyExists,
    ChecksumMismatch,
    Conflict,
    DomaError,
    NotFound,
    PreconditionFailed,
    WrongSize,
)
from doma.core.paths import parent
from doma.store.file import FileStore
from doma.store.memory import MemoryStore

PATHS = ["/a", "/b", "/d", "/d/a", "/d/b", "/d/e", "/d/e/a", "/a/x"]
paths = st.sampled_from(PATHS)
ways = st.sampled_from(["", "absent", "version", "stale", "any", "size", "sum"])
contents = st.sampled_from([b"", b"1", b"two", b"x" * 70_000])


class Walk(RuleBasedStateMachine):
    def make(self, folder: Path):
        raise NotImplementedError

    @initialize()
    def begin(self):
        self.loop = uvloop.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(prefix="doma-walk-")
        self.store = self.do(self.made())
        self.files: dict[str, bytes] = {}
        self.dirs = {"/"}
        self.versions: dict[str, str] = {}
        self.old = set()
        self.readers = []

    async def made(self):
        return self.make(Path(self.folder.name))

    def do(self, work):
        return self.loop.run_until_complete(work)

    def outcome(self, work):
        """The class of the error, or None."""
        try:
            self.do(work)
        except DomaError as e:
            return type(e)
        return None

    def exists(self, path):
        return path in self.files or path in self.dirs

    def above(self, path):
        while path != "/":
            path = parent(path)
            yield path

    def blocked(self, path):
        return path in self.dirs or any(p in self.files for p in self.above(path))

    def landed(self, path, data, version):
        assert version not in self.old
        self.old.add(version)
        self.files[path], self.versions[path] = data, version
        self.dirs |= set(self.above(path))

    @rule(
        path=paths,
        data=contents,
        how=ways,
    )
    def put(self, path, data, how):
        there = self.versions.get(path)
        conditions = {
            "absent": {"if_absent": True},
            "version": {"if_version": there or "none"},
            "stale": {"if_version": "stale"},
            "any": {"if_version": "*"},
            "size": {"size": len(data) + 1},
            "sum": {"checksums": {"adler32": "deadbeef"}},
        }.get(how, {"size": len(data), "checksums": {"adler32": f"{zlib.adler32(data):08x}"}})
        expected = None
        if self.blocked(path):
            expected = Conflict
        elif (how == "absent" and there) or how == "stale" or (how in {"version", "any"} and not there):
            expected = PreconditionFailed
        else:
            expected = {"size": WrongSize, "sum": ChecksumMismatch}.get(how)

        async def work():
            upload = await self.store.create(path, **conditions)
            await upload.write(data)
            stat = await upload.commit()
            self.landed(path, data, stat.version)

        assert self.outcome(work()) is expected

    @rule(path=paths, data=contents)
    def begin_and_give_up(self, path, data):
        async def work():
            upload = await self.store.create(path)
            await upload.write(data)
            await upload.abort()

        assert self.outcome(work()) is (Conflict if self.blocked(path) else None)

    @rule(path=paths, recursive=st.booleans(), version=st.sampled_from([None, "right", "stale"]))
    def delete(self, path, recursive, version):
        given = self.versions.get(path, "none") if version == "right" else version
        below = [p for p in [*self.files, *self.dirs] if p.startswith(path + "/")]
        if not self.exists(path):
            expected = NotFound
        elif version == "stale" or (version == "right" and path in self.dirs):
            expected = PreconditionFailed
        else:
            expected = Conflict if path in self.dirs and below and not recursive else None
        assert self.outcome(self.store.delete(path, version=given, recursive=recursive)) is expected
        if expected is None:
            for gone in [path, *below]:
                self.files.pop(gone, None)
                self.versions.pop(gone, None)
                self.dirs.discard(gone)

    @rule(pair=st.tuples(paths, paths), overwrite=st.booleans())
    def rename(self, pair, overwrite):
        source, target = pair
        if not self.exists(source):
            expected = NotFound
        elif target == source or target.startswith(source + "/") or parent(target) not in self.dirs:
            expected = Conflict
        elif not self.exists(target):
            expected = None
        elif not overwrite:
            expected = PreconditionFailed
        else:
            expected = Conflict if source in self.dirs or target in self.dirs else None
        got = self.outcome(self.store.rename(source, target, overwrite=overwrite))
        assert got is expected
        if expected is None:
            for path in [p for p in self.files if p == source or p.startswith(source + "/")]:
                new = target + path[len(source) :]
                self.files[new], self.versions[new] = self.files.pop(path), self.versions.pop(path)
            for path in [p for p in self.dirs if p == source or p.startswith(source + "/")]:
                self.dirs.discard(path)
                self.dirs.add(target + path[len(source) :])

    @rule(path=paths)
    def make_dir(self, path):
        expected = None
        if self.exists(path):
            expected = AlreadyExists
        elif parent(path) not in self.dirs:
            expected = Conflict
        assert self.outcome(self.store.make_dir(path)) is expected
        if expected is None:
            self.dirs.add(path)

    @rule(path=paths)
    def open_and_keep(self, path):
        if path in self.files and len(self.readers) < 4:
            self.readers.append((self.do(self.store.open(path)), self.files[path]))

    @rule()
    def read_what_was_opened(self):
        for reader, data in self.readers:
            assert bytes(self.do(reader.read(0, len(data)))) == data

    @rule(path=paths)
    def peek(self, path):
        hot = self.store.peek(path)
        if hot is not None:
            view = hot.view(0, hot.stat.size)
            assert view is None or bytes(view) == self.files[path]
            assert hot.stat.version == self.versions[path]

    @invariant()
    def agrees(self):
        if not hasattr(self, "store"):
            return
        for path in PATHS:
            if path in self.files:
                stat = self.do(self.store.stat(path))
                assert (stat.size, stat.version) == (len(self.files[path]), self.versions[path])
                assert stat.checksums["adler32"] == f"{zlib.adler32(self.files[path]):08x}"
            elif path in self.dirs:
                assert self.do(self.store.stat(path)).is_dir
            else:
                assert self.outcome(self.store.stat(path)) is NotFound

        async def listed(path):
            return [entry.path async for entry in self.store.list(path)]

        for path in self.dirs:
            below = sorted(p for p in [*self.files, *self.dirs] if p != "/" and parent(p) == path)
            assert self.do(listed(path)) == below

    def teardown(self):
        if hasattr(self, "store"):
            self.do(self.store.close())
            self.readers.clear()
            self.loop.close()
            self.folder.cleanup()


class MemoryWalk(Walk):
    def make(self, folder):
        return MemoryStore()


class FileWalk(Walk):
    def make(self, folder):
        return FileStore(folder, fsync=False)


@pytest.mark.parametrize("walk", [MemoryWalk, FileWalk])
def test_a_random_walk_agrees_with_a_dictionary(walk):
    from hypothesis.stateful import run_state_machine_as_test

    # Derandomized: the same walks each time; other seeds are for whoever changes an engine.
    how = settings(max_examples=30, stateful_step_count=25, deadline=None, derandomize=True)
    run_state_machine_as_test(walk, settings=how)

"""The cache contract's freshness table F1-F18, with a clock that the test turns."""

import asyncio
from dataclasses import replace

import pytest

from doma.auth.model import bearer
from doma.cache.freshness import Control, control
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import Forbidden, NotCached, NotFound, OriginFailed, StorageUnavailable, Unauthenticated
from doma.store.http_status import Probe
from doma.store.memory import MemoryStore
from doma.store.protocol import Stat

DAY = 86400.0


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


class FileLike(MemoryStore):
    """An origin that says nothing about freshness, may go away, and counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.up = True
        self.asked = 0
        self.opened = 0
        self.sent = 0
        self.allow = None
        self.lie = 0

    def _enter(self):
        if not self.up:
            raise StorageUnavailable("origin: nobody answers")
        if self.allow is not None and bearer.get() not in self.allow:
            raise (Forbidden if bearer.get() else Unauthenticated)("origin: not with this token")

    async def stat(self, path):
        self.asked += 1
        await asyncio.sleep(0)
        self._enter()
        return await super().stat(path)

    async def open(self, path):
        self.opened += 1
        self._enter()
        return Counted(self, await super().open(path))


class Counted:
    def __init__(self, origin, inner):
        self._origin, self._inner = origin, inner
        self.known, self.hashed = inner.known, inner.hashed
        word = getattr(origin, "word", None) or inner.stat.version
        self.stat = replace(inner.stat, size=inner.stat.size + origin.lie, version=word)

    async def read(self, start, stop):
        self._origin._enter()
        await asyncio.sleep(0)
        data = await self._inner.read(start, stop)
        self._origin.sent += len(data)
        return data

    async def close(self):
        await self._inner.close()


class HttpLike(FileLike):
    """The same, speaking of Cache-Control, Age and conditions."""

    def __init__(self):
        super().__init__()
        self.cache_control = ""
        self.age = 0.0
        self.unchanged = 0
        self.word = None

    async def stat(self, path):
        stat = await super().stat(path)
        return replace(stat, version=self.word) if self.word else stat

    async def probe(self, path, *, if_none_match=None):
        stat = await self.stat(path)
        if if_none_match == stat.version:
            self.unchanged += 1
            return Probe(None, self.cache_control, self.age)
        return Probe(stat, self.cache_control, self.age)


async def put(store, path, data):
    upload = await store.create(path, size=len(data))
    await upload.write(data)
    return await upload.commit()


async def get(store, path):
    reader = await store.open(path)
    try:
        return bytes(await reader.read(0, reader.stat.size)), dict(reader.headers)
    finally:
        await reader.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def origin():
    return HttpLike()


@pytest.fixture
async def make(tmp_path, clock, origin):
    made = []

    def make(store=origin, **config):
        cache = CacheStore(tmp_path / "cache", Origins(store, name="site"), Cache(**config), clock=clock)
        made.append(cache)
        return cache

    yield make
    for cache in made:
        await cache.close()


@pytest.fixture
def cache(make):
    return make()


def test_names_of_the_cache_speak_of_the_origin(cache):
    assert cache.place("/a/b").path == "/a/b"


async def test_f1_what_the_origin_promises_is_fresh_so_long_and_no_longer(cache, origin, clock):
    origin.cache_control, origin.age = "max-age=60", 10.0
    await put(origin, "/f", b"one")
    assert (await get(cache, "/f"))[1]["Age"] == "10"
    await put(origin, "/f", b"two!")
    clock.now += 49
    data, headers = await get(cache, "/f")
    assert (data, headers["Age"], headers["X-Cache"]) == (b"one", "59", "HIT")
    clock.now += 2
    assert (await get(cache, "/f"))[0] == b"two!"


async def test_f1_s_maxage_wins(cache, origin, clock):
    origin.cache_control = "max-age=1000, s-maxage=10"
    await put(origin, "/f", b"one")
    await get(cache, "/f")
    await put(origin, "/f", b"two")
    clock.now += 11
    assert (await get(cache, "/f"))[0] == b"two"


@pytest.mark.parametrize(("kind", "life"), [(HttpLike, DAY), (FileLike, 3600.0)])
async def test_f2_f6_f7_without_a_word_the_default_lifetime_holds(make, clock, kind, life):
    origin = kind()
    cache = make(origin)
    await put(origin, "/f", b"one")
    await get(cache, "/f")
    await put(origin, "/f", b"two")
    clock.now += life * 0.89
    assert (await get(cache, "/f"))[0] == b"one"
    clock.now += life * 0.22
    data, _ = await get(cache, "/f")
    stat = await cache.stat("/f")
    assert data == b"two"
    assert stat.version == (await origin.stat("/f")).version
    assert await cache.checksum("/f", "adler32") == await origin.checksum("/f", "adler32")


@pytest.mark.parametrize("word", ["no-store", "private"])
async def test_f3_what_must_not_be_kept_leaves_nothing_on_disk(cache, origin, tmp_path, word):
    origin.cache_control = word
    secret = b"do not keep me " * 1000
    await put(origin, "/f", secret)
    for _ in range(2):
        data, headers = await get(cache, "/f")
        assert (data, headers["X-Cache"]) == (secret, "BYPASS")
    assert cache.peek("/f") is None
    assert not [p for p in (tmp_path / "cache" / "objects").rglob("*") if p.is_file()]
    assert cache.stats().bytes["bypass"] == 2 * len(secret)


async def test_f3_an_object_that_becomes_no_store_leaves_the_disk(cache, origin, tmp_path, clock):
    origin.cache_control = "max-age=5"
    await put(origin, "/f", b"x" * 5000)
    await get(cache, "/f")
    origin.cache_control = "no-store"
    clock.now += 6
    assert (await get(cache, "/f"))[0] == b"x" * 5000
    assert not [p for p in (tmp_path / "cache" / "objects").rglob("*") if p.is_file()]


async def test_f4_no_cache_is_validated_every_time_and_costs_no_bytes(cache, origin):
    origin.cache_control = "no-cache"
    await put(origin, "/f", b"x" * 9000)
    for _ in range(3):
        await get(cache, "/f")
    assert (origin.sent, origin.asked, origin.unchanged) == (9000, 3, 2)
    assert cache.peek("/f") is None
    await put(origin, "/f", b"y")
    assert (await get(cache, "/f"))[0] == b"y"


async def test_f5_not_modified_renews_without_bytes(cache, origin, clock):
    origin.cache_control = "max-age=10"
    await put(origin, "/f", b"x" * 9000)
    await get(cache, "/f")
    clock.now += 11
    data, headers = await get(cache, "/f")
    assert (data, headers["Age"]) == (b"x" * 9000, "0")
    assert (origin.sent, origin.unchanged, cache.stats().counts["renewed"]) == (9000, 1, 1)
    clock.now += 9
    await get(cache, "/f")
    assert origin.asked == 2


async def test_f8_f9_a_reader_keeps_its_version_while_new_opens_see_the_new_one(cache, origin, clock):
    origin.cache_control = "max-age=10"
    old, new = b"o" * 20_000, b"n" * 30_000
    await put(origin, "/f", old)
    await get(cache, "/f")
    reader = await cache.open("/f")
    hot = cache.peek("/f")
    await put(origin, "/f", new)
    clock.now += 11
    assert (await get(cache, "/f"))[0] == new
    assert bytes(await reader.read(0, 20_000)) == old
    assert hot is not None
    assert hot.stat.size == 20_000
    assert bytes(hot.view(0, 20_000) or old) == old
    await reader.close()


async def test_f8_a_half_cached_old_version_fails_rather_than_mix(cache, origin):
    old, new = b"o" * 40_000, b"n" * 40_000
    await put(origin, "/f", old)
    reader = await cache.open("/f")
    assert bytes(await reader.read(0, 4096)) == old[:4096]
    await cache.connections.close()  # as after any pause: the next range opens the origin anew
    await put(origin, "/f", new)
    with pytest.raises(OriginFailed, match="another version"):
        await reader.read(20_000, 24_000)
    assert bytes(await reader.read(0, 4096)) == old[:4096]
    await reader.close()
    assert (await get(cache, "/f"))[0] == new


async def test_f10_a_cached_object_is_served_stale_while_its_origin_is_away(make, origin, clock):
    cache = make(stale_if_error=100)
    origin.cache_control = "max-age=10"
    await put(origin, "/f", b"kept")
    await get(cache, "/f")
    origin.up = False
    clock.now += 50
    data, headers = await get(cache, "/f")
    assert data == b"kept"
    assert headers["Warning"].startswith("111")
    assert "ttl=-40" in headers["Cache-Status"]
    asked = origin.asked
    await get(cache, "/f")
    assert origin.asked == asked, "a dead origin is not asked at every open"
    clock.now += 61
    with pytest.raises(StorageUnavailable, match="nobody answers"):
        await get(cache, "/f")
    origin.up = True
    data, headers = await get(cache, "/f")
    assert data == b"kept"
    assert "Warning" not in headers


async def test_f10_can_be_switched_off_and_must_revalidate_forbids_it(make, origin, clock):
    cache = make(stale_if_error=0)
    origin.cache_control = "max-age=10"
    await put(origin, "/f", b"kept")
    await get(cache, "/f")
    origin.up = False
    clock.now += 11
    with pytest.raises(StorageUnavailable):
        await get(cache, "/f")


async def test_an_uncached_object_of_a_dead_origin_is_a_clear_error(cache, origin):
    origin.up = False
    with pytest.raises(StorageUnavailable, match="nobody answers"):
        await get(cache, "/f")


async def test_f11_gone_at_validation_is_gone_here_and_forbidden_is_not(cache, origin, clock):
    origin.cache_control = "max-age=10"
    await put(origin, "/f", b"data")
    await get(cache, "/f")
    clock.now += 11
    origin.allow = {"good"}
    bearer.set("bad")
    with pytest.raises(Forbidden):
        await get(cache, "/f")
    bearer.set("good")
    assert (await get(cache, "/f"))[0] == b"data"
    assert origin.sent == 4, "the refusal of one client must not cost the object"
    clock.now += 11
    await origin.delete("/f")
    with pytest.raises(NotFound):
        await get(cache, "/f")
    origin.up = False
    with pytest.raises(NotFound):
        await get(cache, "/f")
    assert cache.peek("/f") is None


async def test_f12_no_cache_of_a_client_validates_now_but_not_at_any_rate(cache, origin, clock):
    await put(origin, "/f", b"one")
    await get(cache, "/f")
    await put(origin, "/f", b"two")
    assert (await get(cache, "/f"))[0] == b"one"
    control.set(Control.REFRESH)
    assert cache.peek("/f") is None
    assert (await get(cache, "/f"))[0] == b"two"
    clock.now += 5
    asked = origin.asked
    for _ in range(10):
        await get(cache, "/f")
    assert origin.asked == asked + 1


async def test_f13_only_if_cached_never_touches_the_origin(cache, origin, clock):
    origin.cache_control = "max-age=10"
    await put(origin, "/f", b"x" * 10_000)
    control.set(Control.ONLY_IF_CACHED)
    with pytest.raises(NotCached):
        await cache.open("/f")
    with pytest.raises(NotCached):
        await cache.stat("/f")
    assert origin.asked == 0
    control.set(Control.NORMAL)
    reader = await cache.open("/f")
    await reader.read(0, 4096)
    await reader.close()
    control.set(Control.ONLY_IF_CACHED)
    before = (origin.asked, origin.opened, origin.sent)
    reader = await cache.open("/f")
    assert bytes(await reader.read(0, 4096)) == b"x" * 4096
    with pytest.raises(NotCached):
        await reader.read(4096, 10_000)
    with pytest.raises(NotCached):
        reader.require(0, 10_000)
    reader.require(0, 4096)
    await reader.close()
    clock.now += 11
    with pytest.raises(NotCached):
        await cache.open("/f")
    assert (origin.asked, origin.opened, origin.sent) == before


async def test_f15_f18_without_a_strong_validator_the_copy_has_its_own(cache, origin, clock):
    for word in ("weak.none.4", "weak.0123.4"):
        origin.cache_control, origin.word = "max-age=10", word
        await put(origin, "/f", b"one!")
        origin.sent = origin.unchanged = 0
        control.set(Control.REFRESH)
        clock.now += 2
        first = await get(cache, "/f"), await cache.stat("/f")
        control.set(Control.NORMAL)
        clock.now += 11
        again = await get(cache, "/f"), await cache.stat("/f")
        assert first[1].version != word
        # A date or a weak ETag can say "unchanged"; with nothing to compare, the content is fetched anew.
        kept = not word.startswith("weak.none")
        assert (first[1].version == again[1].version) is kept
        assert origin.sent == (4 if kept else 8)
        await origin.delete("/f")


async def test_f16_a_size_that_disagrees_discards_the_version(cache, origin):
    await put(origin, "/f", b"x" * 10_000)
    origin.lie = 1
    with pytest.raises(OriginFailed):
        await get(cache, "/f")
    origin.lie = 0
    assert (await get(cache, "/f"))[0] == b"x" * 10_000


async def test_f17_many_clients_at_expiry_are_one_validation(cache, origin, clock):
    origin.cache_control = "max-age=10"
    await put(origin, "/f", b"x" * 10_000)
    await asyncio.gather(*(get(cache, "/f") for _ in range(16)))
    assert origin.asked == 1
    clock.now += 11
    await asyncio.gather(*(get(cache, "/f") for _ in range(16)))
    assert (origin.asked, origin.sent) == (2, 10_000)


@pytest.mark.parametrize("path", ["/f", "/https:/se.example.org/f"])
async def test_one_callers_refusal_is_not_the_others(tmp_path, clock, origin, path):
    origins = Origins(origin, open=lambda base: origin, allow=("https://*",))
    cache = CacheStore(tmp_path / "c", origins, Cache(), clock=clock)
    origin.allow = {"good"}
    await put(origin, "/f", b"x" * 10_000)

    async def client(token):
        bearer.set(token)
        return await get(cache, path)

    tokens = ["bad", "good", None, "good", "bad"]
    out = await asyncio.gather(*(client(t) for t in tokens), return_exceptions=True)
    await cache.close()
    assert [type(o) for o in out][:2] == [Forbidden, tuple]
    assert isinstance(out[3], tuple)
    assert origin.sent == 10_000
    # At the fixed origin the door's own policy has spoken before; at a named one only the origin can.
    if path != "/f":
        assert [type(o) for o in out] == [Forbidden, tuple, Unauthenticated, tuple, Forbidden]


async def test_what_is_not_kept_is_told_to_nobody_on_anothers_token(tmp_path, clock, origin):
    origins = Origins(MemoryStore(), open=lambda base: origin, allow=("https://*",))
    cache = CacheStore(tmp_path / "c", origins, Cache(), clock=clock)
    origin.allow, origin.cache_control = {"good"}, "no-store"
    await put(origin, "/f", b"x" * 10_000)

    async def client(token):
        bearer.set(token)
        return await cache.stat("/https:/se.example.org/f")

    out = await asyncio.gather(*(client(t) for t in ["good", "bad", None]), return_exceptions=True)
    await cache.close()
    assert [type(o) for o in out] == [Stat, Forbidden, Unauthenticated]


async def test_a_missing_file_is_remembered_shortly_and_only_for_who_was_told(cache, origin, clock):
    for _ in range(3):
        with pytest.raises(NotFound):
            await cache.stat("/f")
    assert origin.asked == 1
    await put(origin, "/f", b"now")
    bearer.set("somebody else")
    assert (await get(cache, "/f"))[0] == b"now"
    bearer.set(None)
    clock.now += 31
    assert (await get(cache, "/f"))[0] == b"now"


async def test_a_missing_file_is_looked_for_again_at_once_on_request(cache, origin):
    with pytest.raises(NotFound):
        await cache.stat("/f")
    await put(origin, "/f", b"now")
    control.set(Control.REFRESH)
    assert (await get(cache, "/f"))[0] == b"now"


async def test_an_origin_named_by_the_client_decides_about_every_caller(tmp_path, clock, origin):
    opened = []

    def reach(base):
        opened.append(base)
        return origin

    allow = ("https://*.example.org", "http://other:8080")
    origins = Origins(MemoryStore(), open=reach, allow=allow)
    cache = CacheStore(tmp_path / "c", origins, Cache(), clock=clock)
    await put(origin, "/d/f", b"hidden")
    origin.allow = {"good"}
    bearer.set("good")
    for path in ("/https:/SE.example.org:443/d/f", "/https://se.example.org/d/f"):
        assert (await get(cache, path))[0] == b"hidden"
    assert cache.peek("/https:/se.example.org/d/f") is not None
    assert (opened, origin.sent) == (["https://se.example.org"], 6)
    for stranger, error in (("bad", Forbidden), (None, Unauthenticated)):
        bearer.set(stranger)
        assert cache.peek("/https:/se.example.org/d/f") is None
        with pytest.raises(error):
            await get(cache, "/https:/se.example.org/d/f")
        origin.up = False
        clock.now += 2 * DAY
        with pytest.raises(StorageUnavailable):
            await get(cache, "/https:/se.example.org/d/f")
        origin.up = True
    for host in (
        "https:/evil.org/f",
        "https:/evil.org#.example.org/f",
        "https:/x@se.example.org/f",
        "https:/evil.org%2f.example.org/f",
        "https:/[::1]/f",
        "https:/",
        "http:/se.example.org/f",
    ):
        with pytest.raises(Forbidden, match=r"cache\.allow"):
            await cache.open("/" + host)
    await cache.close()


async def test_f2_a_path_may_have_a_lifetime_of_its_own_and_be_immutable(make, clock):
    origin = FileLike()
    cache = make(origin, file_lifetime=100, lifetimes={"/mc": "immutable", "/mc/test": 10, "/user": 1000})
    for path in ("/mc/f", "/mc/test/f", "/user/f", "/mcx/f"):
        await put(origin, path, b"content")
        await get(cache, path)
    asked = origin.asked

    async def validated(path):
        before = origin.asked
        await get(cache, path)
        return origin.asked > before

    assert origin.asked == asked
    clock.now += 20
    assert [await validated(p) for p in ("/mc/f", "/mc/test/f", "/user/f", "/mcx/f")] == [
        False,
        True,
        False,
        False,
    ]
    clock.now += 200
    assert [await validated(p) for p in ("/mc/f", "/user/f", "/mcx/f")] == [False, False, True]
    clock.now += 5000 * DAY
    assert [await validated(p) for p in ("/mc/f", "/user/f")] == [False, True]

"""The cache behind the real door, in front of a real origin over HTTP, with the client's own token."""

import http.client
import random
import time

import pytest

from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.store.file import FileStore
from doma.store.http import HttpStore
from tests.e2e.served import Served

SIZE = 2_500_000


class Server(Served):
    """A site and three caches of it.

    ``warm`` trusts for an hour, and clients may name the site; ``wary`` asks every time; ``local`` knows the
    site's folder.
    """

    def __init__(self, home):
        super().__init__({"site": FileStore(home / "site")})
        self._home = home

    def caches(self):
        site, here = HttpStore(f"{self.base}/site"), FileStore(self._home / "site")
        named = Origins(site, name="site", open=HttpStore, allow=(self.base,))
        self.of = {
            "warm": CacheStore(self._home / "warm", named, Cache(lifetime=3600)),
            "wary": CacheStore(
                self._home / "wary", Origins(HttpStore(f"{self.base}/site"), name="site"), Cache(lifetime=0)
            ),
            "local": CacheStore(self._home / "local", Origins(here, name="here"), Cache()),
        }
        return self.of


class Client:
    """One kept connection."""

    def __init__(self, server):
        self._connection = http.client.HTTPConnection(*server.address, timeout=20)
        self.token = server.token()

    def ask(self, method, target, body=None, **headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            fields["Authorization"] = f"Bearer {self.token}"
        self._connection.request(method, target, body, fields)
        answer = self._connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def close(self):
        self._connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def client(server):
    client = Client(server)
    yield client
    client.close()


def put(client, name, data):
    status, _, text = client.ask("PUT", f"/site{name}", data)
    assert status in (201, 204), text


def test_the_second_read_costs_the_origin_nothing(server, client):
    data = random.Random(1).randbytes(SIZE)
    put(client, "/d/f.root", data)
    cache = server.of["warm"]
    before = cache.stats().bytes["origin"]
    status, cold, body = client.ask("GET", "/warm/d/f.root")
    assert (status, body == data, cold["X-Cache"]) == (200, True, "MISS")
    for _ in range(2):
        status, warm, body = client.ask("GET", "/warm/d/f.root")
        assert (status, body == data, warm["X-Cache"]) == (200, True, "HIT")
    assert cache.stats().bytes["origin"] - before == SIZE
    assert warm["ETag"] == client.ask("HEAD", "/site/d/f.root")[1]["ETag"]
    assert int(warm["Age"]) < 60
    assert warm["Cache-Status"].startswith("doma; hit; ttl=")


def test_any_range_cold_or_warm_is_the_origins(server, client):
    data = random.Random(2).randbytes(SIZE)
    put(client, "/r", data)
    rng = random.Random(3)
    spans = [tuple(sorted(rng.sample(range(SIZE), 2))) for _ in range(12)]
    for _ in range(3):
        for a, b in spans:
            status, headers, body = client.ask("GET", "/warm/r", Range=f"bytes={a}-{b}")
            assert (status, body == data[a : b + 1]) == (206, True)
            assert headers["Content-Range"] == f"bytes {a}-{b}/{SIZE}"
    many = ",".join(f"{a}-{a + 9}" for a, _ in spans)
    ours = client.ask("GET", "/warm/r", Range=f"bytes={many}")
    assert ours[0] == 206
    assert all(data[a : a + 10] in ours[2] for a, _ in spans)
    assert client.ask("GET", "/warm/r", Range=f"bytes={SIZE}-")[0] == 416


def test_a_replaced_file_is_seen_after_its_lifetime_and_validated_without_bytes(server, client):
    cache = server.of["wary"]
    put(client, "/f", b"one")
    before = cache.stats()
    for _ in range(3):
        assert client.ask("GET", "/wary/f")[2] == b"one"
    after = cache.stats()
    assert after.bytes["origin"] - before.bytes["origin"] == 3
    assert after.counts["renewed"] - before.counts["renewed"] == 2
    put(client, "/f", b"two!")
    assert client.ask("GET", "/wary/f")[2] == b"two!"
    assert client.ask("DELETE", "/site/f")[0] == 204
    assert client.ask("GET", "/wary/f")[0] == 404


def test_nobody_reads_from_the_cache_what_the_token_does_not_cover(server, client):
    put(client, "/secret/f", b"hidden")
    assert client.ask("GET", "/warm/secret/f")[2] == b"hidden"
    client.token = server.token("storage.read:/open")
    assert client.ask("GET", "/warm/secret/f")[0] == 403
    client.token = None
    assert client.ask("GET", "/warm/secret/f")[0] == 401


def test_a_cache_refuses_writes_and_foreign_origins_clearly(server, client):
    for target, status, word in (
        ("/warm/new", 405, b"read-only"),
        ("/warm/https://x.org/f", 403, b"cache.allow"),
    ):
        got, _, text = client.ask("PUT" if status == 405 else "GET", target, b"x" if status == 405 else None)
        assert (got, word in text) == (status, True), text


def test_only_if_cached_never_asks_the_origin_and_answers_what_is_here(server, client):
    data = random.Random(4).randbytes(SIZE)
    put(client, "/only", data)
    cache = server.of["warm"]
    before = cache.stats().bytes["origin"]
    status, _, text = client.ask("GET", "/warm/only", Cache_Control="only-if-cached")
    assert (status, cache.stats().bytes["origin"] - before) == (504, 0)
    assert b"only" in text
    client.ask("GET", "/warm/only", Range="bytes=0-99999")
    status, headers, body = client.ask(
        "GET", "/warm/only", Range="bytes=5-99", Cache_Control="only-if-cached"
    )
    assert (status, body, headers["X-Cache"]) == (206, data[5:100], "HIT")
    assert client.ask("GET", "/warm/only", Cache_Control="only-if-cached")[0] == 504  # not all of it is here


def test_a_query_is_refused_where_it_may_mean_another_file_and_never_dropped(server, client):
    put(client, "/q", b"the plain one")
    for path in ("/warm/q", f"/warm/http:/{server.base.removeprefix('http://')}/site/q"):
        for method in ("GET", "HEAD"):
            assert client.ask(method, path + "?X-Amz-Date=1&Signature=s")[0] == 200
            status, _, text = client.ask(method, path + "?version=1")
            assert status == 400
            assert method == "HEAD" or b"cache.ignore_query" in text
    assert client.ask("GET", "/local/q?version=1")[2] == b"the plain one"  # a disk knows no queries


def test_no_cache_makes_a_fresh_object_be_validated_now(server, client):
    put(client, "/nc", b"one")
    for _ in range(2):
        assert client.ask("GET", "/warm/nc")[2] == b"one"
    put(client, "/nc", b"two!")
    assert client.ask("GET", "/warm/nc")[2] == b"one"  # fresh for an hour
    time.sleep(1.1)  # forced validations of one object are at least 1 s apart
    assert client.ask("GET", "/warm/nc", Cache_Control="no-cache")[2] == b"two!"
    assert client.ask("GET", "/warm/nc")[2] == b"two!"


def test_a_warm_range_of_a_partly_cached_file_is_a_hit_and_fetches_nothing_ahead(server, client):
    data = random.Random(5).randbytes(SIZE)
    put(client, "/part", data)
    cache = server.of["warm"]
    before = cache.stats().bytes["origin"]
    status, headers, body = client.ask("GET", "/warm/part", Range="bytes=0-8191")
    assert (status, body, headers["X-Cache"]) == (206, data[:8192], "MISS")
    assert cache.stats().bytes["origin"] - before == 8192
    assert client.ask("GET", "/warm/part", Range="bytes=100-199")[1]["X-Cache"] == "HIT"


def test_a_partly_cached_file_that_was_replaced_is_answered_whole_and_new_at_the_first_try(server, client):
    old, new = (random.Random(seed).randbytes(SIZE) for seed in (6, 7))
    put(client, "/swap", old)
    assert client.ask("GET", "/warm/swap", Range="bytes=0-8191")[2] == old[:8192]
    put(client, "/swap", new)
    status, _, body = client.ask("GET", "/warm/swap")
    assert (status, body == new) == (200, True)


def test_a_refused_upload_names_the_path_with_its_endpoint(server, client):
    put(client, "/taken", b"x")
    status, _, text = client.ask("PUT", "/site/taken/below", b"y")
    assert (status, text.decode().startswith("/site/taken/below: ")) == (409, True)
    status, _, text = client.ask("PUT", "/warm/new", b"y")
    assert (status, "read-only" in text.decode()) == (405, True)

"""The cache's commands over HTTP, with real tokens: who may ask what, and what happens."""

import httpx
import pytest
from fastapi import FastAPI

from doma.auth.clients import Clients
from doma.auth.gate import Gate
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.cache.origins import Origins
from doma.cache.routes import router
from doma.cache.store import CacheStore
from doma.core import config
from doma.net.problem import install
from doma.store.memory import MemoryStore

URL = "https://se.example.org/cms"
HERE = "https://se.example.org"
SIZE = 300_000


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    home = tmp_path_factory.mktemp("issuer")
    return Issuer(URL, "cms", KeySet.load_or_make(home / "keys"), clients=Clients(home / "clients.json"))


@pytest.fixture
def ask(issuer):
    """Headers of a token with these scopes."""

    def ask(scopes, **headers):
        token = issuer.issue(subject="alice", scopes=scopes, audience=[HERE], alg="ES256")
        return {"Authorization": f"Bearer {token}", **headers}

    return ask


@pytest.fixture
async def cache(tmp_path):
    origin = MemoryStore()
    cache = CacheStore(tmp_path / "cache", Origins(origin), config.Cache(size=1_000_000, high=1.0, low=0.9))
    for name in ("/a/one", "/a/two", "/b"):
        upload = await origin.create(name, size=SIZE)
        await upload.write(name.encode()[:1] * SIZE)
        await upload.commit()
    yield cache
    await cache.close()


async def warm(cache, path):
    reader = await cache.open(path)
    await reader.read(0, reader.stat.size)
    await reader.close()


@pytest.fixture
async def client(cache, issuer):
    verifier = Verifier([config.Issuer(issuer=URL)], [HERE], local={URL: issuer.keys.jwks()})
    app = FastAPI()
    app.include_router(router(cache, verifier, Gate({URL: ["/"]})))
    install(app)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://cache") as client:
        yield client
    await verifier.close()


COMMANDS = [
    ("GET", "/api/v1/cache/stats"),
    ("POST", "/api/v1/cache/holdings"),
    ("POST", "/api/v1/cache/verify?path=/b"),
    ("POST", "/api/v1/cache/purge"),
    ("GET", "/pelican/api/v1.0/evict?path=/b"),
]


@pytest.mark.parametrize(("method", "url"), COMMANDS)
async def test_nothing_is_told_or_done_without_a_token(client, cache, method, url):
    await warm(cache, "/b")
    answer = await client.request(method, url, json={"paths": []} if "holdings" in url else None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await cache.holdings(["/b"]))[0].complete


async def test_stats_show_hits_misses_and_origin_bytes(client, cache, ask):
    await warm(cache, "/b")
    await warm(cache, "/b")
    stats = (await client.get("/api/v1/cache/stats", headers=ask("fts"))).json()
    assert stats["bytes"] | {"hit": SIZE, "miss": SIZE, "origin": SIZE, "bypass": 0} == stats["bytes"]
    assert stats["hit_ratio"] == 0.5
    assert 0 < stats["used"] <= stats["size"] == 1_000_000


async def test_holdings_say_what_part_is_here_and_only_of_readable_paths(client, cache, ask):
    await warm(cache, "/a/one")
    reader = await cache.open("/a/two")
    await reader.read(0, 4096)
    await reader.close()
    body = {"paths": ["/a/one", "/a/two", "/a/none"]}
    answer = await client.post("/api/v1/cache/holdings", json=body, headers=ask("storage.read:/a"))
    files = answer.json()["files"]
    assert [(f["path"], f["size"], f["cached"], f["complete"]) for f in files] == [
        ("/a/one", SIZE, SIZE, True),
        ("/a/two", SIZE, 4096, False),
        ("/a/none", None, 0, False),
    ]
    assert answer.json()["cached"] == SIZE + 4096
    answer = await client.post(
        "/api/v1/cache/holdings", json={"paths": ["/b"]}, headers=ask("storage.read:/a")
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_evicted_object_is_gone_at_once_or_first_at_the_next_purge(client, cache, ask, method):
    for path in ("/b", "/a/one", "/a/two"):
        await warm(cache, path)
    url, headers = "/pelican/api/v1.0/evict", ask("storage.modify:/a")
    answer = await client.request(method, url, params={"path": "/a/two"}, headers=headers)
    assert answer.status_code == 200
    assert "at the next purge" in answer.text
    assert (await cache.holdings(["/a/two"]))[0].complete
    plan = (await client.post("/api/v1/cache/purge?dry_run=true", headers=ask("doma.admin"))).json()
    assert [(v["path"], v["reason"]) for v in plan["objects"]] == [("/a/two", "evicted, first in line")]
    assert (await cache.holdings(["/a/two"]))[0].complete
    done = (await client.post("/api/v1/cache/purge", headers=ask("doma.admin"))).json()
    assert done["objects"] == plan["objects"]
    assert (await cache.holdings(["/a/two"]))[0].size is None
    answer = await client.request(
        method,
        url,
        params={"path": "/a/", "immediate": "true"},
        headers=headers | {"Accept": "application/json"},
    )
    assert answer.json()["objects"] == 1
    assert (await cache.holdings(["/a/one"]))[0].size is None
    assert (await cache.holdings(["/b"]))[0].complete


async def test_evict_refuses_clearly(client, cache, ask):
    url = "/pelican/api/v1.0/evict"
    admin = ask("storage.modify:/")
    reader = await cache.open("/b")
    await reader.read(0, 10)
    cases = [
        (None, admin, 400),
        ("b", admin, 400),
        ("/../b", admin, 400),
        ("/none", admin, 404),
        ("/https://elsewhere.org/x", admin, 403),
        ("/b", ask("storage.read:/"), 403),
        ("/b", ask("storage.modify:/a"), 403),
        ("/b", admin, 409),
    ]
    for path, headers, status in cases:
        params = {"immediate": "1"} | ({"path": path} if path else {})
        answer = await client.get(url, params=params, headers=headers)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["detail"]
    await reader.close()
    assert (await client.get(url, params={"path": "/b"}, headers=admin)).status_code == 200


async def test_verify_finds_and_mends_what_nobody_read(client, cache, ask, tmp_path):
    await warm(cache, "/b")
    pages = next(p for p in (tmp_path / "cache" / "objects").rglob("*") if p.suffix)
    with pages.open("r+b") as file:
        file.seek(100_000)
        file.write(b"rotten")
    url, headers = "/api/v1/cache/verify?path=/b", ask("storage.modify:/b")
    report = (await client.post(url, headers=headers)).json()
    assert (report["pages"], report["damaged"], report["repaired"], report["error"]) == (74, 1, 1, "")
    report = (await client.post(url, headers=headers)).json()
    assert (report["damaged"], report["repaired"]) == (0, 0)
    assert (await client.post(url, headers=ask("storage.read:/"))).status_code == 403

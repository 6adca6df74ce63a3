"""The cache's commands over HTTP, with real tokens: who may ask what, and what happens."""

import asyncio
import json

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
from doma.cache.routes_body import LONGEST
from doma.cache.store import CacheStore
from doma.core import config
from doma.core.errors import DomaError
from doma.net.problem import install
from doma.store.memory import MemoryStore

URL = "https://se.example.org/cms"
HERE = "https://se.example.org"
SIZE = 1_500_000
ROOM = 6_000_000
"""Three of these, and the index and folders beside them, are above the low mark; two are not."""


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
    cache = CacheStore(
        tmp_path / "cache",
        Origins(origin),
        config.Cache(size=ROOM, high=1.0, low=0.68, pin_quota=0.5, pin_share=0.5),
    )
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
    while cache.catalogue.in_use(cache.place(path).key):  # the reader has all; a slow disk may not yet
        await asyncio.sleep(0.001)


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
    ("POST", "/api/v1/cache/purge_first"),
    ("POST", "/api/v1/cache/prestage"),
    ("GET", "/api/v1/cache/objects?path=/b"),
    ("GET", "/api/v1/cache/holdings?path=/b"),
    ("GET", "/api/v1/cache/scrub"),
    ("GET", "/api/v1/cache/pins"),
    ("PUT", "/api/v1/cache/pins/b"),
    ("DELETE", "/api/v1/cache/pins/b"),
    ("GET", "/pelican/api/v1.0/prestage?path=/b"),
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
    assert 0 < stats["used"] <= stats["size"] == ROOM


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
    assert (report["pages"], report["damaged"], report["repaired"], report["error"]) == (367, 1, 1, "")
    report = (await client.post(url, headers=headers)).json()
    assert (report["damaged"], report["repaired"]) == (0, 0)
    assert (await client.post(url, headers=ask("storage.read:/"))).status_code == 403


PELICAN = "/pelican/api/v1.0/prestage"


async def test_prestage_tells_its_progress_in_lines_and_the_file_is_here(client, cache, ask):
    answer = await client.get(PELICAN, params={"path": "/b"}, headers=ask("storage.read:/"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert lines[0] == "status: queued"
    assert lines[-1] == "success: ok"
    assert all(line.startswith("status: active,offset=") for line in lines[1:-1])
    assert (await cache.holdings(["/b"]))[0].complete
    assert cache.stats().bytes["prefetch"] == SIZE
    assert cache.stats().bytes["miss"] == 0


async def test_prestage_says_why_it_failed(client, ask):
    answer = await client.get(PELICAN, params={"path": "/none"}, headers=ask("storage.read:/"))
    assert answer.status_code == 200
    assert answer.text.splitlines()[-1].startswith("failure: 404(Not Found): /none")
    as_json = ask("storage.read:/", Accept="application/json")
    answer = await client.get(PELICAN, params={"path": "/none"}, headers=as_json)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    answer = await client.get(PELICAN, params={"path": "/b"}, headers=as_json)
    assert answer.json() == {"path": "/b", "status": "success", "size": SIZE}
    answer = await client.get(PELICAN, params={"path": "/a"}, headers=ask("storage.read:/"))
    assert "failure: 400(Bad Request): /a: is a directory" in answer.text


async def test_many_files_are_prestaged_in_one_request(client, cache, ask):
    body = {"paths": ["/a/one", "/none", "/b"]}
    answer = await client.post("/api/v1/cache/prestage", json=body, headers=ask("storage.read:/"))
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert told[-1] == {"status": "done", "files": 3, "failed": 1}
    last = {line["path"]: line for line in told[:-1]}
    assert [last[path]["status"] for path in body["paths"]] == ["success", "failure", "success"]
    assert last["/none"]["error"]["code"] == "not-found"
    assert [h.complete for h in await cache.holdings(["/a/one", "/b"])] == [True, True]
    answer = await client.post(
        "/api/v1/cache/prestage",
        json={"paths": ["/a/two"], "wait": False},
        headers=ask("storage.read:/"),
    )
    assert (answer.status_code, answer.json()) == (202, {"queued": 1})
    while not (await cache.holdings(["/a/two"]))[0].complete:
        await asyncio.sleep(0.001)


async def test_a_full_prestage_queue_refuses(client, cache, ask):
    body = {"paths": [f"/f{n}" for n in range(200)]}
    answer = await client.post("/api/v1/cache/prestage", json=body, headers=ask("storage.read:/"))
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert cache.prestager.queued == 0


async def test_cached_answers_yes_or_504(client, cache, ask):
    url, headers = "/api/v1/cache/objects", ask("storage.read:/a storage.read:/b")
    answer = await client.get(url, params={"path": "/b"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (504, "not-cached")
    reader = await cache.open("/b")
    await reader.read(0, 4096)
    await reader.close()
    answer = await client.get(url, params={"path": "/b"}, headers=headers)
    assert answer.status_code == 504
    assert f"4096 of {SIZE} bytes" in answer.json()["detail"]
    await warm(cache, "/b")
    answer = await client.get(url, params={"path": "/b"}, headers=headers)
    assert (answer.status_code, answer.json()["complete"], answer.json()["size"]) == (200, True, SIZE)


async def test_holdings_of_a_directory_come_by_name_in_pages(client, cache, ask):
    for path in ("/a/one", "/a/two", "/b"):
        await warm(cache, path)
    url, headers = "/api/v1/cache/holdings", ask("storage.read:/a")
    answer = (await client.get(url, params={"path": "/a/"}, headers=headers)).json()
    assert [f["path"] for f in answer["files"]] == ["/a/one", "/a/two"]
    assert (answer["size"], answer["cached"], answer["complete"]) == (2 * SIZE, 2 * SIZE, 2)
    assert answer["after"] is None
    first = (await client.get(url, params={"path": "/a", "limit": 1}, headers=headers)).json()
    assert ([f["path"] for f in first["files"]], first["after"]) == (["/a/one"], "/a/one")
    rest = (await client.get(url, params={"path": "/a", "after": "/a/one"}, headers=headers)).json()
    assert [f["path"] for f in rest["files"]] == ["/a/two"]
    assert (await client.get(url, params={"path": "/"}, headers=headers)).status_code == 403
    assert (await client.get(url, params={"path": "/a", "limit": 0}, headers=headers)).status_code == 400


async def test_a_pin_keeps_a_file_until_it_ends_or_is_taken_away(client, cache, ask):
    mine, admin = ask("storage.modify:/"), ask("doma.admin")
    answer = await client.put("/api/v1/cache/pins/b", params={"lifetime": 60}, headers=mine)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == SIZE
    for path in ("/b", "/a/one", "/a/two"):
        await warm(cache, path)
    gone = (await client.post("/api/v1/cache/purge", headers=admin)).json()
    assert [v["path"] for v in gone["objects"]] == ["/a/one"]
    answer = await client.get("/pelican/api/v1.0/evict?path=/b&immediate=true", headers=mine)
    assert (answer.status_code, "is pinned" in answer.json()["detail"]) == (409, True)
    listed = (await client.get("/api/v1/cache/pins", headers=mine)).json()
    assert [pin["path"] for pin in listed] == ["/b"]
    assert (await client.get("/api/v1/cache/pins?everybody=true", headers=mine)).status_code == 403
    assert len((await client.get("/api/v1/cache/pins?everybody=true", headers=admin)).json()) == 1
    assert (await client.delete("/api/v1/cache/pins/b", headers=mine)).status_code == 204
    assert (await client.delete("/api/v1/cache/pins/b", headers=mine)).status_code == 404
    answer = await client.get("/pelican/api/v1.0/evict?path=/b&immediate=true", headers=mine)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "scopes", "lifetime", "status"),
    [
        ("b", "storage.read:/", 60, 403),
        ("b", "storage.modify:/a", 60, 403),
        ("none", "storage.modify:/", 60, 404),
        ("a", "storage.modify:/", 60, 400),
        ("b", "storage.modify:/", 0, 400),
        ("b", "storage.modify:/", "nan", 400),
        ("b", "storage.modify:/", "inf", 400),
        ("b", "storage.modify:/", 1e9, 400),
        ("b", "storage.modify:/", "x", 400),
        ("../b", "storage.modify:/", 60, 400),
    ],
)
async def test_a_bad_pin_is_refused(client, ask, path, scopes, lifetime, status):
    url = f"/api/v1/cache/pins/{path.replace('.', '%2e')}"
    answer = await client.put(url, params={"lifetime": lifetime}, headers=ask(scopes))
    assert answer.status_code == status, answer.text


async def test_purge_first_takes_a_list(client, cache, ask):
    for path in ("/b", "/a/one", "/a/two"):
        await warm(cache, path)
    url, headers = "/api/v1/cache/purge_first", ask("storage.modify:/a")
    answer = await client.post(url, json=["/a/two", "/a/none"], headers=headers)
    assert answer.json()["missing"] == ["/a/none"]
    assert [e["objects"] for e in answer.json()["evicted"]] == [1]
    plan = (await client.post("/api/v1/cache/purge?dry_run=true", headers=ask("doma.admin"))).json()
    assert [(v["path"], v["reason"]) for v in plan["objects"]] == [("/a/two", "evicted, first in line")]
    assert (plan["count"], plan["bytes"]) == (1, plan["objects"][0]["used"])
    assert (await client.post(url, json=["/b"], headers=headers)).status_code == 403
    assert (await client.post(url, json=["b"], headers=headers)).status_code == 400
    assert (await client.post(url, json=[], headers=headers)).status_code == 400


async def test_a_forced_evict_ends_readers_and_new_ones_fetch_again(client, cache, ask):
    await warm(cache, "/b")
    reader = await cache.open("/b")
    assert await reader.read(0, 10) == b"/" * 10
    url, headers = "/pelican/api/v1.0/evict?path=/b", ask("storage.modify:/")
    assert (await client.get(url, headers=headers)).status_code == 409
    answer = await client.get(url + "&force=true", headers=headers)
    assert (answer.status_code, "now" in answer.text) == (200, True)
    with pytest.raises(DomaError):
        await reader.read(0, 10)
    await reader.close()
    sent = cache.stats().bytes["origin"]
    await warm(cache, "/b")
    assert cache.stats().bytes["origin"] == sent + SIZE


async def test_the_scrubs_report_is_for_operators(client, ask):
    answer = await client.get("/api/v1/cache/scrub", headers=ask("doma.admin"))
    assert (answer.status_code, answer.json()["objects"]) == (200, 0)
    assert (await client.get("/api/v1/cache/scrub", headers=ask("storage.modify:/"))).status_code == 403


NEEDING = [
    ("GET", "/api/v1/cache/objects"),
    ("GET", "/api/v1/cache/holdings"),
    ("POST", "/api/v1/cache/verify"),
    ("GET", PELICAN),
    ("DELETE", "/pelican/api/v1.0/evict"),
]


@pytest.mark.parametrize(("method", "url"), NEEDING)
async def test_a_command_without_a_good_path_is_a_bad_request(client, ask, method, url):
    headers = ask("storage.read:/ storage.modify:/")
    assert (await client.request(method, url, headers=headers)).status_code == 400
    for bad in ("b", "../b", "/a/../../b", "/a\0b"):
        answer = await client.request(method, url, params={"path": bad}, headers=headers)
        assert answer.status_code == 400, bad
    forbidden = await client.request(method, url, params={"path": "/b"}, headers=ask("storage.read:/a"))
    assert forbidden.status_code == 403


@pytest.mark.parametrize("path", [path for method, path in COMMANDS if method == "POST" and "?" not in path])
async def test_a_body_is_read_from_those_only_who_are_known_and_no_further_than_it_may_be_long(
    client, ask, path
):
    read = 0

    async def body():
        nonlocal read
        yield b'{"paths":["/'
        for _ in range(40):
            read += 1 << 20
            yield b"a" * (1 << 20)

    answer = await client.post(path, content=body(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, read) == (401, 0)
    if path.endswith("purge"):
        return  # takes no body
    answer = await client.post(
        path, content=body(), headers=ask("doma.admin", **{"Content-Type": "application/json"})
    )
    assert answer.status_code == 413, answer.text
    assert read <= LONGEST + (1 << 20)

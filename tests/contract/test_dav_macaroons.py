"""Macaroons at the WebDAV door and in OAuth's form: who gets one for what, and what it then opens."""

import json
import time

import httpx
import pytest
from starlette.applications import Starlette

from doma.auth.gate import Gate
from doma.auth.macaroon import Macaroons, parsed
from doma.auth.model import Verb, bearer
from doma.doors import macaroons
from doma.doors.endpoint import Endpoint
from doma.doors.fast import FastDoor
from doma.net.exchange import Request

TYPE = {"content-type": "application/macaroon-request"}
DAY = 86400


@pytest.fixture
async def site(door):
    door.site.verifier.macaroons = Macaroons("se", lambda: [b"k" * 32], DAY)
    for name, store in (("site", "site"), ("other", "other")):
        gate = Gate({door.issuer: ["/"]}, name=name)
        door.site.endpoints[name] = Endpoint(name, door.stores[store], gate)
    for path in ("/a/x", "/b/x"):
        await door.put(path, b"hello")
    await door.put("/a/x", b"hello", "other")
    return door


async def request(door, path="/site/a", caveats=("activity:DOWNLOAD",), scope="storage.read:/", **more):
    body = json.dumps({"caveats": list(caveats), **more}).encode()
    return await door.ask("POST", path, scope, TYPE, body)


async def macaroon(door, *args, **more):
    answer = await request(door, *args, **more)
    assert answer.status == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return json.loads(answer.text)["macaroon"]


async def use(door, text, method, target, headers=None, body=b""):
    given = {"authorization": f"Bearer {text}", "content-length": str(len(body)), **(headers or {})}
    return (await door.ask(method, target, None, given, body)).status


async def test_it_opens_what_was_asked_for_below_its_path_in_header_and_query(site):
    text = await macaroon(site)
    assert await use(site, text, "GET", "/site/a/x") == 200
    assert (await site.ask("GET", f"/site/a/x?authz={text}", None)).body == b"hello"
    assert (await site.ask("GET", f"/site/a/x?authz=Bearer%20{text}", None)).status == 200
    assert await use(site, text, "GET", "/site/b/x") == 403
    assert await use(site, text, "GET", "/site/ab") == 403
    assert await use(site, text, "GET", "/other/a/x") == 403
    assert await use(site, text, "PUT", "/site/a/y", body=b"z") == 403
    assert await use(site, text, "DELETE", "/site/a/x") == 403
    assert await use(site, text[:-2] + "AA", "GET", "/site/a/x") == 401


async def test_an_upload_makes_directories_and_replaces_nothing_unless_it_may_delete(site):
    text = await macaroon(site, caveats=["activity:UPLOAD"], scope="storage.modify:/")
    assert await use(site, text, "PUT", "/site/a/new/f", body=b"z") == 201
    assert await use(site, text, "PUT", "/site/a/x", body=b"z") == 403
    assert await use(site, text, "DELETE", "/site/a/x") == 403
    assert await use(site, text, "GET", "/site/a/x") == 403
    assert await site.content("/a/x") == b"hello"
    text = await macaroon(site, caveats=["activity:UPLOAD,DELETE,MANAGE"], scope="storage.modify:/")
    assert await use(site, text, "PUT", "/site/a/x", body=b"z") in {201, 204}
    assert await use(site, text, "DELETE", "/site/a/x") == 204
    text = await macaroon(site, caveats=["activity:DELETE"], scope="storage.modify:/")
    assert await use(site, text, "PUT", "/site/b/x", body=b"other") == 403
    assert await site.content("/b/x") == b"hello"


async def test_nobody_gets_more_than_he_has(site):
    everything = "activity:DOWNLOAD,UPLOAD,DELETE,LIST,MANAGE,READ_METADATA,UPDATE_METADATA,STAGE"
    text = await macaroon(site, caveats=[everything], scope="storage.read:/a")
    assert b"activity:DOWNLOAD,LIST,READ_METADATA" in parsed(text).caveats
    text = await macaroon(site, caveats=(), scope="storage.create:/a")
    assert b"activity:UPLOAD,MANAGE,READ_METADATA" in parsed(text).caveats
    answer = await request(site, scope="storage.read:/a/b")
    assert answer.status == 403
    assert 'scope="storage.read:/a"' in answer.headers["www-authenticate"]
    assert (await request(site, caveats=["activity:UPLOAD"])).status == 403
    assert (await request(site, scope=None)).status == 401
    assert (await request(site, path="/nowhere/a")).status == 404


async def test_a_macaroon_gets_another_that_is_no_wider_and_lives_no_longer(site):
    text = await macaroon(site, validity="PT60S")
    body = json.dumps({"caveats": ["activity:DOWNLOAD,UPLOAD"], "validity": "PT10H"}).encode()
    answer = await site.ask("POST", "/site/a", None, {**TYPE, "authorization": f"Bearer {text}"}, body)
    again = json.loads(answer.text)
    assert again["expires_in"] <= 60
    assert b"activity:DOWNLOAD" in parsed(again["macaroon"]).caveats
    answer = await site.ask("POST", "/site", None, {**TYPE, "authorization": f"Bearer {text}"}, body)
    assert answer.status == 403


@pytest.mark.parametrize(
    ("validity", "seconds"),
    [("PT30M", 1800), ("PT1H30M", 5400), ("P1D", DAY), ("P400D", DAY), ("PT5S", 5), ("", DAY),
     ("PT9999H", DAY)],
)  # fmt: skip
async def test_validity_is_what_was_asked_up_to_a_day(site, validity, seconds):
    answer = json.loads((await request(site, validity=validity)).text)
    assert seconds - 2 <= answer["expires_in"] <= seconds
    identity = await site.site.verifier.verify(answer["macaroon"], macaroons=True)
    assert abs(identity.expires - time.time() - seconds) < 5
    assert answer["uri"]["target"] == "https://se.example/site/a"
    assert answer["uri"]["targetWithMacaroon"].endswith("?authz=" + answer["macaroon"])


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"content-type": "application/json"}, 415),
        (b"{}", {}, 415),
        (b"{", TYPE, 400),
        (b"[]", TYPE, 400),
        (b"\xff", TYPE, 400),
        (b"[" * 50_000, TYPE, 400),
        (b"x" * 70_000, TYPE, 413),
        (b'{"caveats": "activity:LIST"}', TYPE, 400),
        (b'{"caveats": [1]}', TYPE, 400),
        (b'{"caveats": ["activity:READ"]}', TYPE, 400),
        (b'{"caveats": ["activity:"]}', TYPE, 400),
        (b'{"caveats": ["activity:LIST", "activity:DOWNLOAD"]}', TYPE, 400),
        (b'{"caveats": ["ip:10.0.0.0/8"]}', TYPE, 400),
        (b'{"caveats": ["path:/elsewhere"]}', TYPE, 400),
        (b'{"caveats": ["name:root"]}', TYPE, 400),
        (b'{"caveats": ["activity:LIST\\ncid x"]}', TYPE, 400),
        (b'{"caveats": ["path:/site/a\\u0000"]}', TYPE, 400),
        (b'{"caveats": ["path:/site/a/\\ud800"]}', TYPE, 400),
        (b'{"validity": "30"}', TYPE, 400),
        (b'{"validity": "P"}', TYPE, 400),
        (b'{"validity": "PT"}', TYPE, 400),
        (b'{"validity": "PT-5M"}', TYPE, 400),
        (b'{"validity": 30}', TYPE, 400),
        (b'{"validity": "PT99999999999999M"}', TYPE, 400),
    ],
    ids=map(str, range(24)),
)
async def test_a_request_that_makes_no_sense_gets_one_clear_refusal(site, body, headers, status):
    answer = await site.ask("POST", "/site/a", "storage.read:/", headers, body)
    assert answer.status == status, answer.text
    assert answer.text.count("\n") == 1


async def test_the_top_of_an_endpoint_and_a_directory_can_be_meant(site):
    text = await macaroon(site, path="/site/")
    assert await use(site, text, "GET", "/site/b/x") == 200
    assert await use(site, text, "GET", "/other/a/x") == 403
    text = await macaroon(site, path="/site/a/", scope="storage.read:/a/")
    assert b"path:/site/a/" in parsed(text).caveats
    assert await use(site, text, "GET", "/site/a/x") == 200
    assert (await request(site, path="/site/a", scope="storage.read:/a/")).status == 403


async def test_a_macaroon_is_not_handed_on_to_origins(site):
    text = await macaroon(site)
    held = bearer.set(None)
    try:
        assert (await site.site.identify(f"Bearer {text}", "")).only == "site"
        assert bearer.get() is None
        token = site.token("storage.read:/")
        await site.site.identify(f"Bearer {token}", "")
        assert bearer.get() == token
    finally:
        bearer.reset(held)


async def test_the_quick_side_opens_nothing_that_the_other_does_not(site):
    text = await macaroon(site)
    for target in (b"/site/a/x", b"/other/a/x", b"/site/b/x", b"/site/a/x"):
        asked = Request({}, tls=True, client=("192.0.2.1", 1), server=("192.0.2.2", 443))
        asked.method, asked.target = b"GET", target
        asked.fields = {b"authorization": b"Bearer " + text.encode()}
        slow = await use(site, text, "GET", target.decode())
        assert FastDoor(site.site).head(asked) is None or slow == 200
    identity = site.site.verifier.known(text)
    assert identity.only == "site"
    assert not site.site.endpoints["other"].gate.may(identity, Verb.READ, "/a/x")


# OAuth's form, which gfal2 tries first


@pytest.fixture
async def oauth(site):
    app = Starlette(routes=macaroons.routes(site.site, "https://se.example"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://se.example") as http:
        yield http


async def form(site, oauth, body, scope="storage.read:/"):
    headers = {"Authorization": f"Bearer {site.token(scope)}"} if scope else {}
    return await oauth.post("/token", content=body, headers=headers)


async def test_the_storage_has_a_token_endpoint_of_its_own(site, oauth):
    found = (await oauth.get("/.well-known/oauth-authorization-server")).json()
    assert found["token_endpoint"] == "https://se.example/token"
    body = "grant_type=client_credentials&expire_in=600&scopes=DOWNLOAD:/site/a LIST:/site/a"
    answer = await form(site, oauth, body)
    got = answer.json()
    assert got["token_type"] == "Bearer"
    assert 598 <= got["expires_in"] <= 600
    assert b"activity:DOWNLOAD,LIST" in parsed(got["access_token"]).caveats
    assert await use(site, got["access_token"], "GET", "/site/a/x") == 200
    encoded = "grant_type=client_credentials&scope=DOWNLOAD%3A%2Fsite%2Fa"
    assert (await form(site, oauth, encoded)).json()["access_token"]


@pytest.mark.parametrize(
    ("body", "scope", "status"),
    [
        ("grant_type=client_credentials&scopes=DOWNLOAD:/site/a", None, 401),
        ("grant_type=client_credentials&scopes=UPLOAD:/site/a", "storage.read:/", 403),
        ("grant_type=client_credentials&scopes=DOWNLOAD:/site/a LIST:/site/b", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=EVERYTHING:/site/a", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=DOWNLOAD", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=DOWNLOAD:/site/../a", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=LIST:/site/a&expire_in=-1", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=LIST:/site/a&expire_in=1e9", "storage.read:/", 400),
        ("grant_type=client_credentials&scopes=LIST:/nowhere/a", "storage.read:/", 404),
        ("grant_type=password&scopes=LIST:/site/a", "storage.read:/", 400),
        ("a=1&" * 100, "storage.read:/", 400),
        ("x" * 70_000, "storage.read:/", 413),
    ],
    ids=map(str, range(13)),
)
async def test_a_form_that_makes_no_sense_is_refused_in_oauths_words(site, oauth, body, scope, status):
    answer = await form(site, oauth, body, scope)
    assert answer.status_code == status
    assert answer.json()["error"] in {"invalid_client", "invalid_scope", "invalid_request"}

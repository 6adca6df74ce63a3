"""The ways to a token with a user: devices, redirects, and the pages on which users agree."""

import base64
import html
import json
import re
import time
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from joserfc.jwk import KeySet as JoseKeySet
from starlette.applications import Starlette
from starlette.routing import Mount

from doma.auth.clients import INTERACTIVE, Clients
from doma.auth.codes import Codes
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.ledger import Ledger
from doma.auth.oauth import OAuthError
from doma.auth.routes import issuer_app
from doma.auth.verifier import Verifier
from doma.core import config
from doma.core.errors import Conflict, InvalidToken
from doma.db.engine import Database

URL = "https://se.example.org:8443/cms"
SE = "https://se.example.org:8443"
BACK = "http://127.0.0.1:9999/back?x=1"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
WANTED = "openid offline_access storage.read:/a storage.modify:/ wlcg.groups"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    home = tmp_path_factory.mktemp("login")
    db = Database(f"sqlite:///{home / 'doma.db'}")
    db.migrate()
    clients, users = Clients(home / "clients.json"), Clients(home / "users.json")
    scopes = ["openid", "offline_access", "wlcg.groups", "storage.read:/", "storage.modify:/up"]
    more = {"public": True, "grants": INTERACTIVE, "alg": "ES256"}
    clients.add("cli", scopes, redirect_uris=[BACK], **more)
    clients.add("other", scopes, redirect_uris=["https://else.example.org/"], **more)
    clients.add("batch", scopes, secret="s", alg="ES256")
    users.add("alice", ["storage.read:/", "storage.modify:/"], secret="right", groups=["/cms", "/cms/prod"])
    users.add("bob", ["compute.read"], secret="right")
    users.add("dora", ["storage.read:/"], secret="right")
    yield db, KeySet({"ES256": ECKey.generate_key("P-256")}), clients, users
    db.close()


class World:
    def __init__(self, db, keys, clients, users):
        self.now = float(int(time.time()))
        self.keys, self.clients, self.users = keys, clients, users
        self.ledger = Ledger(db, b"k" * 32)
        self.issuer = Issuer(
            URL, "cms", keys, clients=clients, clock=lambda: self.now, default_audience=SE,
            ledger=self.ledger, users=users,
        )  # fmt: skip
        app = Starlette(routes=[Mount(self.issuer.path, issuer_app(self.issuer))])
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=SE)

    async def post(self, place, headers=None, **form):
        return await self.http.post(f"/cms/{place}", data=form, headers=headers)

    async def device(self, scope=WANTED, client="cli"):
        answer = await self.post("devicecode", client_id=client, scope=scope)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def codes_waiting(self):
        return Codes(self.ledger).pending(self.now)

    async def poll(self, code, client="cli"):
        return await self.post("token", grant_type=DEVICE, device_code=code, client_id=client)

    async def agree(self, user_code, decision="allow", user="alice"):
        page = await self.post("device", user_code=user_code, username=user, password="right")
        assert page.status_code == 200, page.text
        return await self.post("device", ticket=ticket(page), decision=decision)

    def request(self, **changes):
        asked = {
            "response_type": "code", "client_id": "cli", "redirect_uri": BACK, "scope": WANTED,
            "state": "st&1", "code_challenge": CHALLENGE, "code_challenge_method": "S256", "nonce": "n0",
        }  # fmt: skip
        return {name: value for name, value in (asked | changes).items() if value is not None}

    async def consent(self, user="alice", **changes):
        page = await self.http.get("/cms/authorize", params=self.request(**changes))
        assert page.status_code == 200, page.text
        return await self.post("authorize", ticket=ticket(page), username=user, password="right")

    async def code(self, **changes):
        page = await self.consent(**changes)
        answer = await self.post("authorize", ticket=ticket(page), decision="allow")
        assert answer.status_code == 303
        return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]

    async def redeem(self, code, /, **changes):
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "client_id": "cli"}
        return await self.post("token", **(form | {"code_verifier": VERIFIER} | changes))


@pytest.fixture
async def world(shared):
    made = World(*shared)
    yield made
    await made.http.aclose()


def ticket(page):
    return html.unescape(re.search(r'name="ticket" value="([^"]+)"', page.text)[1])


def read(token):
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


# devices


async def test_a_device_gets_what_client_and_user_both_may_once_the_user_agrees(world):
    asked = await world.device()
    assert re.fullmatch(r"[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", asked["user_code"])
    assert (asked["expires_in"], asked["interval"]) == (600, 5)
    assert (await world.poll(asked["device_code"])).json()["error"] == "authorization_pending"
    done = await world.agree(asked["user_code"].lower().replace("-", " "))
    assert "Done" in done.text
    world.now += 5
    got = (await world.poll(asked["device_code"])).json()
    assert got["scope"] == "openid offline_access storage.read:/a wlcg.groups"
    claims = read(got["access_token"])
    assert (claims["sub"], claims["client_id"]) == ("alice", "cli")
    assert claims["wlcg.groups"] == ["/cms", "/cms/prod"]
    assert claims["auth_time"] == int(world.now) - 5
    body = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"], "client_id": "cli"}
    again = (await world.post("token", **body)).json()
    assert read(again["access_token"])["auth_time"] == claims["auth_time"]
    # used again, a code ends what it gave
    assert (await world.poll(asked["device_code"])).json()["error"] == "invalid_grant"
    assert (await world.post("token", **body)).json()["error"] == "invalid_grant"


async def test_a_hasty_device_is_slowed_down(world):
    code = (await world.device())["device_code"]
    errors = []
    for pause in (0, 1, 6, 10, 20, 21):
        world.now += pause
        errors.append((await world.poll(code)).json()["error"])
    pending, slow = "authorization_pending", "slow_down"
    assert errors == [pending, slow, slow, slow, pending, pending]


async def test_one_address_cannot_make_all_others_wait(world, monkeypatch):
    monkeypatch.setattr("doma.auth.login.MAX_NEAR", 2)
    monkeypatch.setattr("doma.auth.login.MAX_WAITING", world.codes_waiting() + 6)

    async def ask(address):
        world.http._transport.client = (address, 1)
        return await world.post("devicecode", client_id="cli")

    for group in (("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1", "2001:db8::2:0:0:9")):
        for address in group:
            assert (await ask(address)).status_code == 200
        for address in group:
            refused = await ask(address)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
            assert refused.json()["error"] == "temporarily_unavailable"
    assert (await ask("192.0.2.2")).status_code == 200
    assert (await ask("2001:db8:0:1::1")).status_code == 200
    assert (await ask("192.0.2.3")).status_code == 429, "all of them are bounded too"
    world.now += 600
    assert (await ask("192.0.2.1")).status_code == 200


async def test_a_refused_an_expired_and_a_strange_device_get_nothing(world):
    refused = await world.device()
    assert "gets nothing" in (await world.agree(refused["user_code"], "deny")).text
    assert (await world.poll(refused["device_code"])).json()["error"] == "access_denied"
    late = await world.device()
    page = await world.post("device", user_code=late["user_code"], username="alice", password="right")
    strange = await world.device()
    assert (await world.poll(strange["device_code"], "other")).json()["error"] == "invalid_grant"
    assert (await world.poll("nonsense")).json()["error"] == "invalid_grant"
    world.now += 600
    assert (await world.poll(late["device_code"])).json()["error"] == "expired_token"
    assert (await world.post("device", ticket=ticket(page), decision="allow")).status_code == 400
    page = await world.post("device", user_code=late["user_code"], username="alice", password="right")
    assert page.status_code == 400


async def test_a_user_who_is_gone_gets_no_new_tokens(world):
    world.users.add("carol", ["storage.read:/"], secret="right")
    asked = await world.device()
    await world.agree(asked["user_code"], user="carol")
    got = (await world.poll(asked["device_code"])).json()
    world.users.remove("carol")
    body = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"], "client_id": "cli"}
    assert (await world.post("token", **body)).json()["error"] == "invalid_grant"


async def test_who_may_not_use_the_device_flow_is_told_so(world):
    answer = await world.post("devicecode", client_id="nobody")
    assert answer.json()["error"] == "invalid_client"
    answer = await world.post("devicecode", client_id="batch", client_secret="s")
    assert answer.json()["error"] == "unauthorized_client"
    asked = await world.device("storage.stage:/")
    page = await world.post("device", user_code=asked["user_code"], username="alice", password="right")
    assert page.status_code == 403


async def test_a_device_asks_for_more_than_the_user_has_and_gets_the_rest(world):
    asked = await world.device("storage.read:/a openid")
    page = await world.post("device", user_code=asked["user_code"], username="bob", password="right")
    assert "<code>openid</code>" in page.text
    assert "storage.read" not in page.text


# the pages


async def test_a_page_runs_no_script_keeps_no_cookie_and_stands_in_no_frame(world):
    for page in (
        await world.http.get("/cms/device?user_code=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"),
        await world.http.get("/cms/authorize", params=world.request()),
        await world.http.get("/cms/authorize?redirect_uri=javascript:alert(1)"),
        await world.consent(),
    ):
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert "unsafe" not in policy
        style = re.search(r"<style>(.*?)</style>", page.text)[1]
        assert base64.b64encode(sha256(style.encode()).digest()).decode() in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert "set-cookie" not in page.headers
        assert "<script" not in page.text


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=str,
)
async def test_a_form_that_another_site_sends_is_refused(world, headers):
    asked = await world.device()
    form = {"user_code": asked["user_code"], "username": "alice", "password": "right"}
    assert (await world.post("device", headers, **form)).status_code == 403
    assert (
        await world.post("device", {"Origin": SE, "Sec-Fetch-Site": "same-origin"}, **form)
    ).status_code == 200


async def test_guessing_the_codes_of_others_devices_is_slowed_down(world):
    asked, form = await world.device(), {"username": "alice", "password": "right"}
    for _ in range(10):
        assert (await world.post("device", user_code="BBBB-BBBB", **form)).status_code == 400
    for typed in ("BBBB-BBBB", asked["user_code"]):
        assert (await world.post("device", user_code=typed, **form)).status_code == 429
    assert (await world.agree(asked["user_code"], user="dora")).status_code == 200
    world.now += 60
    assert (await world.agree((await world.device())["user_code"])).status_code == 200


async def test_guessing_passwords_is_slowed_down(world):
    world.users.add("dave", ["storage.read:/"], secret="right")
    code = (await world.device())["user_code"]
    texts = [
        (await world.post("device", user_code=code, username="dave", password=f"guess{n}")).text
        for n in range(11)
    ]
    assert "Name or password is wrong" in texts[0]
    assert "Too many wrong passwords" in texts[-1]
    other = [
        (await world.post("device", user_code=code, username="nobody", password=f"guess{n}")).text
        for n in range(11)
    ]
    assert [text.replace("nobody", "dave") for text in other] == texts, (
        "nobody learns who has a password here"
    )
    world.users.remove("dave")


@pytest.mark.parametrize("spoil", ["other seal", "other step", "none", "long", "unicode", "unsealed"])
async def test_a_ticket_that_is_not_of_the_page_before_is_refused(world, spoil):
    asked = await world.device()
    page = await world.post("device", user_code=asked["user_code"], username="alice", password="right")
    good = ticket(page)
    bad = {
        "other seal": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "other step": ticket(await world.http.get("/cms/authorize", params=world.request())),
        "none": "x",
        "long": "a" * 10_000,
        "unicode": "é.é",
        "unsealed": good.partition(".")[0] + ".",
    }[spoil]
    assert (await world.post("device", ticket=bad, decision="allow")).status_code == 400
    assert (await world.poll(asked["device_code"])).json()["error"] == "authorization_pending"


# redirects


async def test_a_code_with_its_proof_gives_tokens_and_an_id_token_that_is_no_access_token(world):
    page = await world.consent()
    assert "form-action 'self' http://127.0.0.1:9999;" in page.headers["content-security-policy"]
    answer = await world.post("authorize", ticket=ticket(page), decision="allow")
    target = urlsplit(answer.headers["location"])
    assert answer.headers["location"].startswith(BACK + "&")
    query = parse_qs(target.query)
    assert (query["state"], query["iss"]) == (["st&1"], [URL])
    got = (await world.redeem(query["code"][0])).json()
    assert got["scope"] == "openid offline_access storage.read:/a wlcg.groups"
    keys = JoseKeySet.import_key_set(world.keys.jwks())
    claims = jwt.decode(got["id_token"], keys, algorithms=["ES256"]).claims
    assert (claims["sub"], claims["aud"], claims["nonce"], claims["iss"]) == ("alice", "cli", "n0", URL)
    half = sha256(got["access_token"].encode()).digest()[:16]
    assert claims["at_hash"] == base64.urlsafe_b64encode(half).rstrip(b"=").decode()
    check = Verifier(
        [config.Issuer(issuer=URL, profile="any")],
        [SE, "cli"],
        local={URL: world.keys.jwks},
        clock=lambda: world.now,
    )
    assert await check.verify(got["access_token"])
    with pytest.raises(InvalidToken):
        await check.verify(got["id_token"])
    info = await world.http.get("/cms/userinfo", headers={"Authorization": f"Bearer {got['access_token']}"})
    assert info.json() == {"sub": "alice", "wlcg.groups": ["/cms", "/cms/prod"]}
    for bad in ("", "Bearer x", "Bearer a.b.c", f"Bearer {got['id_token']}", "Bearer \x7f"):
        answer = await world.http.get("/cms/userinfo", headers={"Authorization": bad})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "w" * 43}, "invalid_grant"),
        ({"code_verifier": CHALLENGE}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"redirect_uri": "https://else.example.org/"}, "invalid_grant"),
        ({"client_id": "other"}, "invalid_grant"),
        ({"code": "x"}, "invalid_grant"),
        ({"grant_type": DEVICE, "device_code": "x"}, "invalid_grant"),
    ],
    ids=str,
)
async def test_a_code_without_its_proof_gives_nothing(world, changes, error):
    code = await world.code()
    assert (await world.redeem(code, **changes)).json()["error"] == error


async def test_a_code_is_good_once_and_a_minute(world):
    code = await world.code()
    got = (await world.redeem(code)).json()
    assert (await world.redeem(code)).json()["error"] == "invalid_grant"
    body = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"], "client_id": "cli"}
    assert (await world.post("token", **body)).json()["error"] == "invalid_grant"
    late = await world.code()
    world.now += 60
    assert (await world.redeem(late)).json()["error"] == "invalid_grant"


async def test_a_code_that_comes_again_ends_the_access_token_that_it_gave(world):
    code = await world.code(scope="openid storage.read:/a")
    got = (await world.redeem(code)).json()
    assert "refresh_token" not in got
    look = {"token": got["access_token"], "client_id": "batch", "client_secret": "s"}
    assert (await world.post("introspect", **look)).json()["active"] is True
    assert (await world.redeem(code)).json()["error"] == "invalid_grant"
    assert (await world.post("introspect", **look)).json() == {"active": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "nobody"}, {"client_id": None}, {"redirect_uri": None}, {"client_id": "other"},
        {"redirect_uri": BACK + "&y=2"}, {"redirect_uri": "http://127.0.0.1:9999/back"},
        {"redirect_uri": "javascript:alert(1)"},
    ],
    ids=str,
)  # fmt: skip
async def test_nobody_is_sent_to_an_address_that_is_not_registered(world, changes):
    page = await world.http.get("/cms/authorize", params=world.request(**changes))
    assert page.status_code == 400
    assert "location" not in page.headers


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
    ],
    ids=str,
)
async def test_what_is_wrong_with_a_request_its_client_learns(world, changes, error):
    answer = await world.http.get("/cms/authorize", params=world.request(**changes))
    assert answer.status_code == 303
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    assert (query["error"], query["state"]) == ([error], ["st&1"])


async def test_a_user_may_say_no_and_a_page_serves_once(world):
    page = await world.consent()
    answer = await world.post("authorize", ticket=ticket(page), decision="deny")
    assert "error=access_denied" in answer.headers["location"]
    answer = await world.post("authorize", ticket=ticket(page), decision="allow")
    assert answer.status_code == 400
    page = await world.consent(user="bob", scope="storage.read:/")
    assert "error=invalid_scope" in page.headers["location"]


# both databases


def test_a_code_is_used_once_on_every_database(database):
    codes = Codes(Ledger(database, b"k" * 32))
    about = {"kind": "device", "peer": "192.0.2.1"}
    codes.keep("c", "cli", "s", ["a"], about, now=0, life=60, user_code="BCDFGHJK")
    with pytest.raises(Conflict):
        codes.keep("d", "cli", "s", [], {"kind": "device"}, now=0, life=60, user_code="BCDFGHJK")
    codes.keep("r", "cli", "s", [], {"kind": "redirect"}, now=0, life=60, subject="a", auth_time=1.0)
    codes.keep("r2", "cli", "s", [], {"kind": "redirect"}, now=0, life=60, subject="a", auth_time=1.0)
    assert (codes.pending(1), codes.pending(1, "192.0.2.1"), codes.pending(1, "192.0.2.2")) == (1, 1, 0)
    row = codes.waiting("BCDFGHJK", 1)
    assert codes.decide(row.id, "alice", 1.0, agreed=True, now=1)
    assert not codes.decide(row.id, "bob", 1.0, agreed=False, now=1)
    assert codes.waiting("BCDFGHJK", 1) is None
    with pytest.raises(OAuthError):
        codes.take("c", "cli", "redirect", 2)
    assert codes.take("c", "cli", "device", 2).subject == "alice"
    with pytest.raises(OAuthError):
        codes.take("c", "cli", "device", 2)
    assert codes.take("r", "cli", "redirect", 2).audience == []


def test_what_a_code_gives_is_void_if_the_code_comes_again_meanwhile(database):
    ledger = Ledger(database, b"k" * 32)
    codes = Codes(ledger)
    codes.keep("r", "cli", "s", [], {"kind": "redirect"}, now=0, life=60, subject="a", auth_time=1.0)
    row = codes.take("r", "cli", "redirect", 1)
    with pytest.raises(OAuthError):  # a thief, before the first answer is made
        codes.take("r", "cli", "redirect", 1)
    about = {"client": "cli", "subject": "a", "scope": "s", "audience": [], "details": {}}
    family, token = ledger.begin(**about, now=1, expires=60)
    with pytest.raises(OAuthError):
        codes.gave(row, family, "j", 60, 1)
    assert ledger.find(token, "cli", 1) is None
    assert ledger.is_revoked("j")

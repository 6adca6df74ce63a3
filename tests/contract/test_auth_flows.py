"""The issuer's token, revocation and introspection endpoints, as Rucio, FTS and others use them."""

import base64
import json
import time

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from sqlalchemy import delete
from starlette.applications import Starlette
from starlette.routing import Mount

from doma.auth.clients import INTERACTIVE, Clients
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.ledger import Ledger
from doma.auth.macaroon import Macaroons
from doma.auth.oauth import ASSERTION
from doma.auth.revoked import Revocations
from doma.auth.routes import issuer_app, metadata_route
from doma.auth.tables import families
from doma.auth.verifier import Verifier
from doma.core import config
from doma.core.errors import InvalidToken
from doma.db.engine import Database

URL = "https://se.example.org:8443/cms"
SE = "https://se.example.org:8443"
DAY = 86400.0
TYPES = "urn:ietf:params:oauth:token-type:"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
KEY = ECKey.generate_key("P-256", {"kid": "k1", "alg": "ES256"})
STORAGE = ["storage.read:/", "storage.modify:/", "storage.stage:/"]


class Clock:
    def __init__(self):
        self.now = float(int(time.time()))

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Keys, clients and tables, made once."""
    home = tmp_path_factory.mktemp("flows")
    db = Database(f"sqlite:///{home / 'doma.db'}")
    db.migrate()
    keys = KeySet({"ES256": ECKey.generate_key("P-256")})
    clients = Clients(home / "clients.json")
    for name, scopes, more in (
        ("rucio", [*STORAGE, "fts", "offline_access"], {"groups": ["/cms", "/cms/prod"]}),
        ("fts", [*STORAGE, "offline_access"], {}),
        ("long", ["storage.read:/x"], {"lifetime": 3 * DAY}),
        ("sci", STORAGE, {"profile": "scitokens"}),
        ("narrow", ["storage.read:/a", "fts", "wlcg.groups"], {}),
        ("sets", ["fts"], {"sets": {"/cms/cap": ["storage.read:/", "storage.create:/up"]}}),
        ("cli", STORAGE, {"public": True, "grants": list(INTERACTIVE)}),
        ("keyed", ["fts"], {"jwks": [KEY.as_dict(private=False)]}),
        ("admin", ["doma.admin"], {}),
    ):
        clients.add(
            name,
            scopes,
            **{"alg": "ES256"} | more,
            **({} if "public" in more or "jwks" in more else {"secret": "s"}),
        )
    yield db, keys, clients
    db.close()


class World:
    def __init__(self, db, keys, clients):
        self.clock = Clock()
        self.ledger = Ledger(db, b"k" * 32, grace=DAY, longer=DAY)
        self.keys, self.clients = keys, clients
        self.issuer = Issuer(
            URL, "cms", keys, clients=clients, clock=self.clock, default_audience=SE, ledger=self.ledger
        )
        self.revocations = Revocations(self.ledger, self.clock)
        app = Starlette(
            routes=[
                metadata_route(self.issuer),
                Mount(self.issuer.path, issuer_app(self.issuer, self.revocations)),
            ]
        )
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=SE)

    async def post(self, place, body, client="rucio", secret="s"):
        headers = dict(FORM)
        if client:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()
        sent = body if isinstance(body, str | bytes) else "&".join(f"{k}={v}" for k, v in body.items())
        return await self.http.post(f"/cms/{place}", content=sent, headers=headers)

    async def got(self, body, client="rucio"):
        answer = await self.post("token", body, client)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        return answer.json()

    async def refused(self, body, client="rucio", place="token"):
        answer = await self.post(place, body, client)
        assert 400 <= answer.status_code < 500
        return answer.json()["error"]

    def subject(self, scopes="storage.read:/a storage.modify:/b", **more):
        more = {"audience": [SE, "other"], "lifetime": 900, "client": "web", "alg": "ES256", **more}
        return self.issuer.issue(subject="alice", scopes=scopes, **more)

    def exchange(self, token, kind="refresh_token", **more):
        return {
            "grant_type": EXCHANGE, "requested_token_type": TYPES + kind, "subject_token": token,
            "subject_token_type": TYPES + "access_token", **more,
        }  # fmt: skip


@pytest.fixture
async def world(shared):
    made = World(*shared)
    yield made
    await made.http.aclose()


def read(token):
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


# metadata


async def test_the_metadata_is_complete_and_every_address_in_it_answers(world):
    found = (await world.http.get("/cms/.well-known/openid-configuration")).json()
    assert (await world.http.get("/.well-known/oauth-authorization-server/cms")).json() == found
    assert {"refresh_token", "client_credentials", EXCHANGE} <= set(found["grant_types_supported"])
    assert set(found["token_endpoint_auth_methods_supported"]) == {
        "client_secret_basic", "client_secret_post", "private_key_jwt", "none",
    }  # fmt: skip
    for name, address in found.items():
        if name.endswith(("_uri", "_endpoint")):
            assert (await world.http.get(address)).status_code in {200, 400, 405}, name


# the flow of FTS


async def test_fts_turns_a_users_token_into_one_it_can_renew(world):
    """Its bodies, with blanks, colons and slashes as they are."""
    token = world.subject()
    body = (
        f"grant_type={EXCHANGE}&requested_token_type={TYPES}refresh_token&subject_token_type={TYPES}access_token"
        f"&subject_token={token}&scope=storage.read:/a storage.modify:/b offline_access&audience={SE} other"
    )
    got = await world.got(body, "fts")
    assert got["issued_token_type"] == TYPES + "refresh_token"
    assert got["expires_in"] <= 900  # no longer life than the token it came from
    claims = read(got["access_token"])
    assert (claims["sub"], claims["act"], claims["client_id"]) == ("alice", {"sub": "fts"}, "fts")
    assert claims["aud"] == [SE, "other"]
    assert {"iss", "nbf", "exp", "scope", "aud"} <= claims.keys()

    world.clock.now += DAY
    body = f"grant_type=refresh_token&refresh_token={got['refresh_token']}&scope=storage.modify:/b/c"
    again = await world.got(f"{body}&audience={SE}", "fts")
    assert again["expires_in"] == 3600
    assert again["scope"] == "storage.modify:/b/c"
    assert again["refresh_token"] != got["refresh_token"]
    claims = read(again["access_token"])
    assert (claims["sub"], claims["act"], claims["aud"]) == ("alice", {"sub": "fts"}, SE)
    # narrowed once, the family itself is as wide as before
    whole = await world.got({"grant_type": "refresh_token", "refresh_token": again["refresh_token"]}, "fts")
    assert whole["scope"] == "storage.read:/a storage.modify:/b offline_access"


@pytest.mark.parametrize(
    "more",
    [
        {"scope": "storage.read:/"},
        {"scope": "storage.read:/ab"},
        {"scope": "storage.read:/b"},
        {"scope": "storage.read:/a storage.stage:/a"},
        {"scope": "fts"},
        {"scope": "wlcg.groups:/cms"},
        {"scope": "storage.read:/a/../b"},
        {"scope": "storage.read"},
        {"audience": "third"},
        {"audience": f"{SE} https://wlcg.cern.ch/jwt/v1/any"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_an_exchange_and_a_refresh_never_widen(world, more, kind):
    token = world.subject()
    assert await world.refused(world.exchange(token, kind, **more), "fts") == "invalid_scope"
    got = await world.got(world.exchange(token), "fts")
    body = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"], **more}
    assert await world.refused(body, "fts") == "invalid_scope"
    body = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"]}
    assert (await world.got(body, "fts"))["access_token"]  # a refused request uses nothing up


async def test_an_exchange_does_not_lengthen_the_life_of_an_access_token(world):
    token = world.subject(lifetime=100)
    world.clock.now += 70
    got = await world.got(world.exchange(token, "access_token"), "fts")
    assert read(got["access_token"])["exp"] == read(token)["exp"]
    assert "refresh_token" not in got


async def test_an_exchange_gives_no_more_than_the_client_is_registered_for(world):
    token = world.subject("storage.read:/ fts")
    got = await world.got(world.exchange(token, "access_token", scope="storage.read:/a fts"), "narrow")
    assert got["scope"] == "storage.read:/a fts"
    assert (
        await world.refused(world.exchange(token, "access_token", scope="storage.read:/b"), "narrow")
        == "invalid_scope"
    )
    assert await world.refused(world.exchange(token), "narrow") == "unauthorized_client"
    assert await world.refused(world.exchange(token, "access_token"), "cli") == "invalid_client"


async def test_capabilities_cannot_be_dropped_to_let_groups_count(world):
    """A token with a capability is decided without its groups: without it they would decide, and widen."""
    token = world.subject("storage.read:/a/b wlcg.groups fts", groups=["/cms/prod"])
    assert (
        await world.refused(world.exchange(token, "access_token", scope="wlcg.groups"), "narrow")
        == "invalid_scope"
    )
    got = await world.got(world.exchange(token, "access_token", scope="wlcg.groups fts"), "narrow")
    assert "wlcg.groups" not in read(got["access_token"])
    got = await world.got(world.exchange(token, "access_token"), "narrow")
    assert read(got["access_token"])["wlcg.groups"] == ["/cms/prod"]
    own = await world.got(
        {"grant_type": "client_credentials", "scope": "storage.read:/ wlcg.groups fts offline_access"}
    )
    assert read(own["access_token"])["wlcg.groups"] == ["/cms", "/cms/prod"]
    body = {"grant_type": "refresh_token", "refresh_token": own["refresh_token"], "scope": "wlcg.groups fts"}
    assert "wlcg.groups" not in read((await world.got(body))["access_token"])


async def test_actors_stand_one_in_another_but_not_without_end(world):
    token = world.subject()
    for n in range(5):
        token = (await world.got(world.exchange(token, "access_token"), "fts"))["access_token"]
        actor, depth = read(token)["act"], 0
        while actor:
            actor, depth = actor.get("act"), depth + 1
        assert depth == n + 1
    assert await world.refused(world.exchange(token, "access_token"), "fts") == "invalid_grant"


@pytest.mark.parametrize(
    "spoil", ["expired", "other issuer", "forged", "revoked", "no jwt", "refresh", "macaroon"]
)
async def test_a_subject_token_that_is_not_good_is_refused(world, spoil):
    token = world.subject()
    match spoil:
        case "expired":
            world.clock.now += 900
        case "other issuer":
            other = Issuer("https://other.example.org/cms", "cms", world.keys, clients=world.clients)
            token = other.issue(subject="a", scopes="storage.read:/a", audience=[SE], alg="ES256")
        case "forged":
            stranger = KeySet({"ES256": ECKey.generate_key("P-256")})
            token = stranger.sign(read(token), "ES256")
        case "revoked":
            world.ledger.revoke(read(token)["jti"], 9e9, world.clock.now)
        case "no jwt":
            token = "x" * 100
        case "refresh":
            token = (await world.got(world.exchange(token), "fts"))["refresh_token"]
        case _:  # a macaroon
            token = "MDAyMWxvY2F0aW9uIGh0dHA"
    assert await world.refused(world.exchange(token), "fts") == "invalid_grant"


@pytest.mark.parametrize(
    "more",
    [
        {"subject_token_type": TYPES + "id_token"},
        {"requested_token_type": TYPES + "saml2"},
        {"actor_token": "x"},
        {"subject_token": ""},
    ],
    ids=str,
)
async def test_an_exchange_of_other_kinds_is_refused(world, more):
    assert await world.refused(world.exchange(world.subject()) | more, "fts") == "invalid_request"


# what clients are registered for


async def test_a_client_of_its_own_gets_a_refresh_token_when_it_asks_and_may(world):
    got = await world.got({"grant_type": "client_credentials", "scope": "fts offline_access"})
    assert got["scope"] == "fts offline_access"
    again = await world.got({"grant_type": "refresh_token", "refresh_token": got["refresh_token"]})
    assert read(again["access_token"])["sub"] == "rucio"
    assert "act" not in read(again["access_token"])
    got = await world.got({"grant_type": "client_credentials", "scope": "fts offline_access"}, "narrow")
    assert "refresh_token" not in got


async def test_what_a_registration_lost_a_refresh_does_not_give_back(world, shared):
    clients = shared[2]
    clients.add("brief", ["storage.read:/", "storage.modify:/", "offline_access"], secret="s", alg="ES256")
    scope = "storage.read:/a storage.modify:/a offline_access"
    got = await world.got({"grant_type": "client_credentials", "scope": scope}, "brief")
    clients.remove("brief")
    body = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"]}
    assert await world.refused(body, "brief") == "invalid_client"
    clients.add("brief", ["storage.read:/", "offline_access"], secret="s", alg="ES256")
    assert (await world.got(body, "brief"))["scope"] == "storage.read:/a offline_access"
    clients.remove("brief")


async def test_rucio_names_several_hosts_in_one_audience(world):
    got = await world.got(
        "grant_type=client_credentials&audience=se1.org se2.org&scope=storage.read:/a offline_access"
    )
    assert read(got["access_token"])["aud"] == ["se1.org", "se2.org"]


async def test_a_client_may_have_its_own_longest_life_and_the_profile_of_scitokens(world):
    got = await world.got({"grant_type": "client_credentials", "scope": "storage.read:/x/y"}, "long")
    assert got["expires_in"] == 3 * DAY
    scope = "read:/a write:/b storage.stage:/a"
    got = await world.got({"grant_type": "client_credentials", "scope": scope}, "sci")
    claims = read(got["access_token"])
    assert (claims["ver"], claims["aud"], claims["scope"]) == ("scitoken:2.0", "ANY", "read:/a write:/b")
    assert got["scope"] == "read:/a write:/b"
    assert not any(name.startswith("wlcg") for name in claims)
    check = Verifier(
        [config.Issuer(issuer=URL, vo="cms", profile="scitokens")], [SE], local={URL: world.keys.jwks},
        clock=world.clock,
    )  # fmt: skip
    assert {str(c.verb) for c in (await check.verify(got["access_token"])).capabilities} == {
        "read", "create", "modify",
    }  # fmt: skip


async def test_a_capability_set_stands_for_its_scopes(world):
    got = await world.got(
        {"grant_type": "client_credentials", "scope": "wlcg.capabilityset:/cms/cap fts"}, "sets"
    )
    assert got["scope"] == "storage.read:/ storage.create:/up fts"
    for other in ("/cms", "/cms/capital", ""):
        body = {"grant_type": "client_credentials", "scope": f"wlcg.capabilityset:{other}"}
        assert await world.refused(body, "sets") == "access_denied"


async def test_a_public_client_gets_nothing_for_itself(world):
    for grant in ("client_credentials", EXCHANGE):
        body = {"grant_type": grant, "client_id": "cli", "scope": "storage.read:/"}
        assert await world.refused(body, None) == "unauthorized_client"
    assert (
        await world.refused({"grant_type": "refresh_token", "client_id": "rucio"}, None) == "invalid_client"
    )
    assert (
        await world.refused({"client_id": "cli", "token": "x"}, None, "introspect") == "unauthorized_client"
    )


# private_key_jwt


def assertion(now, key=KEY, **changes):
    claims = {
        "iss": "keyed",
        "sub": "keyed",
        "aud": f"{URL}/token",
        "exp": int(now) + 60,
        "jti": str(time.monotonic_ns()),
    }
    return jwt.encode(
        {"alg": "ES256", "kid": "k1"}, {k: v for k, v in (claims | changes).items() if v is not None}, key
    )


async def test_a_client_may_prove_itself_by_its_key_once(world):
    body = {
        "grant_type": "client_credentials", "scope": "fts", "client_assertion_type": ASSERTION,
        "client_assertion": assertion(world.clock.now),
    }  # fmt: skip
    answer = await world.post("token", body, None)
    assert read(answer.json()["access_token"])["sub"] == "keyed"
    assert (await world.post("token", body, None)).json()["error"] == "invalid_client"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://other.example.org"}, {"aud": None}, {"exp": 1}, {"exp": None}, {"exp": "x"},
        {"exp": 9e9}, {"jti": None}, {"sub": "rucio"}, {"iss": "rucio"}, {"iss": "nobody"},
        {"iss": ["keyed"]}, {"key": ECKey.generate_key("P-256")},
    ],
    ids=str,
)  # fmt: skip
async def test_an_assertion_that_is_not_right_is_no_client(world, changes):
    body = {
        "grant_type": "client_credentials", "scope": "fts", "client_assertion_type": ASSERTION,
        "client_assertion": assertion(world.clock.now, **changes),
    }  # fmt: skip
    assert (await world.post("token", body, None)).json()["error"] == "invalid_client"


# the end of tokens


async def test_a_revoked_access_token_is_refused_by_our_verifier_at_once(world):
    check = Verifier(
        [config.Issuer(issuer=URL, vo="cms")], [SE], local={URL: world.keys.jwks}, clock=world.clock,
        revoked=world.revocations,
    )  # fmt: skip
    world.revocations.on_new.append(check.drop)
    token = (await world.got({"grant_type": "client_credentials", "scope": "fts", "audience": SE}))[
        "access_token"
    ]
    other = (await world.got({"grant_type": "client_credentials", "scope": "fts", "audience": SE}))[
        "access_token"
    ]
    assert await check.verify(token)
    assert (await world.post("introspect", {"token": token}, "fts")).json()["active"] is True
    assert (await world.post("revoke", {"token": token}, "fts")).status_code == 200
    assert await check.verify(token)  # another client's: nothing happens
    epoch = check.epoch
    for _ in range(2):
        answer = await world.post("revoke", {"token": token})
        assert (answer.status_code, answer.content) == (200, b"")
    assert check.known(token) is None
    assert check.epoch == epoch + 1
    with pytest.raises(InvalidToken, match="revoked"):
        await check.verify(token)
    assert await check.verify(other)
    assert (await world.post("introspect", {"token": token}, "fts")).json() == {"active": False}


@pytest.mark.parametrize("late", [False, True], ids=["while it is good", "after its end"])
async def test_a_macaroon_of_a_revoked_token_stays_void_though_it_outlives_that(world, late):
    made = Macaroons("se", lambda: [b"s" * 32], DAY)

    def verifier(revocations):
        issuers, local = [config.Issuer(issuer=URL, vo="cms")], {URL: world.keys.jwks}
        return Verifier(issuers, [SE], local=local, clock=world.clock, revoked=revocations, macaroons=made)

    form = {"grant_type": "client_credentials", "scope": "storage.read:/", "audience": SE}
    token = (await world.got(form))["access_token"]
    check = verifier(world.revocations)
    world.revocations.on_new.append(check.drop)
    stolen = made.issue(await check.verify(token), "/site/a", ["DOWNLOAD"], world.clock.now + DAY)
    assert await check.verify(stolen, macaroons=True)
    if late:
        world.clock.now += DAY / 2
    assert (await world.post("revoke", {"token": token})).status_code == 200
    with pytest.raises(InvalidToken, match="revoked"):
        await check.verify(stolen, macaroons=True)
    world.clock.now += DAY / 4  # long after the token itself, and a restart
    world.ledger.prune(world.clock.now)
    again = Revocations(world.ledger, world.clock)
    await again.look()
    with pytest.raises(InvalidToken, match="revoked"):
        await verifier(again).verify(stolen, macaroons=True)


async def test_who_administers_may_revoke_any_token_of_the_issuer(world):
    token = world.subject()
    await world.post("revoke", {"token": token}, "admin")
    assert read(token)["jti"] in world.revocations


async def test_a_revoked_refresh_token_ends_its_family(world):
    got = await world.got({"grant_type": "client_credentials", "scope": "fts offline_access"})
    again = await world.got({"grant_type": "refresh_token", "refresh_token": got["refresh_token"]})
    for client, active in (("rucio", True), ("fts", False)):
        found = (await world.post("introspect", {"token": got["refresh_token"]}, client)).json()
        assert found["active"] is active
    assert (await world.post("revoke", {"token": got["refresh_token"]})).status_code == 200
    for token in (got["refresh_token"], again["refresh_token"]):
        body = {"grant_type": "refresh_token", "refresh_token": token}
        assert await world.refused(body) == "invalid_grant"
        assert (await world.post("introspect", {"token": token})).json() == {"active": False}


@pytest.mark.parametrize("place", ["revoke", "introspect"])
async def test_tokens_end_or_are_told_of_for_known_clients_only(world, place):
    assert (await world.post(place, {"token": "x"}, None)).json()["error"] == "invalid_client"
    assert (await world.post(place, {"token": "x"}, "rucio", "wrong")).status_code == 401
    assert (await world.post(place, {})).json()["error"] == "invalid_request"
    for text in ("x", "a.b.c", "%00", "doma-rt.x", "doma-rt." + "0" * 36 + ".1." + "A" * 43, "é" * 9000):
        answer = await world.post(place, {"token": text})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"=&=&", b"grant_type", "grant_type=" + "x" * 70_000, "refresh_token[]=1",
     "grant_type=refresh_token&refresh_token=%00",
     "grant_type=refresh_token&refresh_token=doma-rt.%ff", "grant_type=%F0%9F%98%80", "a&" * 200],
    ids=lambda body: repr(body)[-40:],
)  # fmt: skip
async def test_a_form_that_makes_no_sense_gets_one_clear_refusal(world, body):
    answer = await world.post("token", body)
    assert answer.status_code in {400, 413}
    assert answer.json()["error"] in {"invalid_request", "unsupported_grant_type", "invalid_grant"}
    assert answer.json()["error_description"].isascii()


async def test_a_family_that_was_deleted_is_as_if_it_had_never_been(world, shared):
    got = await world.got({"grant_type": "client_credentials", "scope": "fts offline_access"})
    shared[0].run_sync(lambda tx: tx.execute(delete(families)))
    assert (
        await world.refused({"grant_type": "refresh_token", "refresh_token": got["refresh_token"]})
        == "invalid_grant"
    )


async def test_tables_that_do_not_answer_are_an_error_of_ours_without_details(shared, tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'empty.db'}")  # never migrated
    broken = World(db, *shared[1:])
    body = {"grant_type": "client_credentials", "scope": "fts offline_access"}
    for place, sent in (("token", body), ("introspect", {"token": broken.subject()})):
        answer = await broken.post(place, sent)
        assert answer.status_code in {500, 503}
        assert answer.json()["error"] in {"server_error", "temporarily_unavailable"}
        assert "empty.db" not in answer.text
    assert (
        await broken.post("token", {"grant_type": "client_credentials", "scope": "fts"})
    ).status_code == 200
    await broken.http.aclose()
    db.close()

"""The issuer of a running system: clients registered meanwhile, tokens and their end, a user's device."""

import html
import re
import time

import pytest

from doma.store.s3_signature import Credentials, presigned

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
S3 = {"endpoint": "site", "prefix": "/auth-live", "verbs": ["read"]}
TYPES = "urn:ietf:params:oauth:token-type:"


@pytest.fixture
def rucio(shared, said):
    """A client with its secret."""
    scope = "storage.read:/ storage.modify:/ offline_access"
    code, out, err = said("client", "add", "rucio", "--home", shared.home.path, "--scope", scope)
    assert code == 0, err
    yield "rucio", out.strip()
    said("client", "rm", "rucio", "--home", shared.home.path)


def token(shared, who, place="token", **form):
    return shared.ask("POST", f"/doma/{place}", None, auth=who, data=form)


def test_a_token_opens_files_until_it_is_revoked_on_both_sides_of_the_door(shared, rucio):
    shared.put("/site/auth-live/f", b"hello")
    got = token(shared, rucio, grant_type="client_credentials", scope="storage.read:/auth-live").json()
    for _ in range(3):  # the first asks the application, then the quick side knows the token
        assert shared.ask("GET", "/site/auth-live/f", got["access_token"]).content == b"hello"
    assert token(shared, rucio, "introspect", token=got["access_token"]).json()["active"] is True
    key = shared.ask("POST", "/api/v1/s3/keys", got["access_token"], json=S3).json()
    who = Credentials(key["access_key"], key["secret_key"], key["session_token"])
    signed = presigned("GET", shared.run["https"] + "/site/auth-live/f", who, now=time.time(), life=600)
    assert shared.ask("GET", signed, None).content == b"hello"
    assert token(shared, rucio, "revoke", token=got["access_token"]).status_code == 200
    late = shared.ask("GET", signed, None)
    assert (late.status_code, "was revoked" in late.text) == (403, True)
    refused = shared.ask("GET", "/site/auth-live/f", got["access_token"])
    assert refused.status_code == 401
    assert "revoked" in refused.headers["www-authenticate"]
    assert token(shared, rucio, "introspect", token=got["access_token"]).json() == {"active": False}
    shared.ask("DELETE", "/site/auth-live")


def test_a_users_token_becomes_one_that_renews_itself(shared, rucio):
    subject = shared.token("storage.read:/auth-live")
    form = {
        "grant_type": EXCHANGE, "requested_token_type": TYPES + "refresh_token", "subject_token": subject,
        "subject_token_type": TYPES + "access_token",
    }  # fmt: skip
    got = token(shared, rucio, **form).json()
    again = token(shared, rucio, grant_type="refresh_token", refresh_token=got["refresh_token"]).json()
    same = token(shared, rucio, grant_type="refresh_token", refresh_token=got["refresh_token"]).json()
    assert again["refresh_token"] == same["refresh_token"] != got["refresh_token"]
    assert shared.ask("GET", "/site/auth-live/none", again["access_token"]).status_code == 404
    assert shared.ask("GET", "/site/else", again["access_token"]).status_code == 403


def test_a_user_lets_a_device_in(shared, said):
    home = shared.home.path
    said("client", "add", "cli", "--home", home, "--scope", "storage.read:/ openid", "--public")
    password = said("user", "add", "alice", "--home", home, "--scope", "storage.read:/a")[1].strip()
    try:
        form = {"client_id": "cli", "scope": "openid storage.read:/a/b storage.read:/else"}
        asked = shared.ask("POST", "/doma/devicecode", None, data=form).json()
        assert asked["verification_uri"] == shared.run["services"]["issuer"] + "/device"
        form = {"user_code": asked["user_code"], "username": "alice", "password": password}
        page = shared.ask("POST", "/doma/device", None, data=form)
        ticket = html.unescape(re.search(r'name="ticket" value="([^"]+)"', page.text)[1])
        shared.ask("POST", "/doma/device", None, data={"ticket": ticket, "decision": "allow"})
        form = {"grant_type": DEVICE, "device_code": asked["device_code"], "client_id": "cli"}
        got = shared.ask("POST", "/doma/token", None, data=form).json()
        assert got["scope"] == "openid storage.read:/a/b"
    finally:
        said("client", "rm", "cli", "--home", home)
        said("user", "rm", "alice", "--home", home)
    for secret in (password, ticket, asked["device_code"], got["access_token"]):
        assert secret not in shared.log


def test_a_macaroon_is_asked_for_and_used_on_both_sides_of_the_door(shared):
    shared.put("/site/auth-live/f", b"hello")
    kind = {"Content-Type": "application/macaroon-request"}
    body = '{"caveats": ["activity:DOWNLOAD"], "validity": "PT5M"}'
    answer = shared.ask("POST", "/site/auth-live", headers=kind, content=body)
    macaroon = answer.json()["macaroon"]
    for _ in range(3):
        assert shared.ask("GET", "/site/auth-live/f", macaroon).content == b"hello"
    assert shared.ask("GET", "/data/kept.txt", macaroon).status_code == 403
    assert shared.ask("PUT", "/site/auth-live/g", macaroon, content=b"x").status_code == 403
    assert shared.ask("GET", "/servicex/transformation", macaroon).status_code == 401
    metadata = shared.ask("GET", "/.well-known/oauth-authorization-server", None).json()
    scopes = "DOWNLOAD:/site/auth-live LIST:/site/auth-live"
    form = {"grant_type": "client_credentials", "expire_in": "60", "scopes": scopes}
    got = shared.ask("POST", metadata["token_endpoint"], data=form).json()
    assert shared.ask("GET", "/site/auth-live/f", got["access_token"]).content == b"hello"
    assert got["expires_in"] <= 60
    shared.ask("DELETE", "/site/auth-live")
    assert macaroon not in shared.log


def test_new_keys_sign_in_a_running_system_and_old_tokens_stay_good(start, said):
    system = start("home", "--role", "issuer", "--role", "storage")
    old = system.token()
    system.put("/site/f", b"x")
    code, _, err = said("keys", "rotate", "--home", system.home.path, "--now")
    assert code == 0, err
    keys = {key["kid"] for key in system.ask("GET", "/doma/jwks", None).json()["keys"]}
    assert len(keys) == 4
    fresh = system.token()
    assert fresh.split(".")[0] != old.split(".")[0]
    for each in (old, fresh):
        assert system.ask("GET", "/site/f", each).status_code == 200

"""The built-in issuer: its keys, its clients, what it signs, and its HTTP face."""

import base64
import json
import os
import shutil
import threading
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwt
from joserfc.jwk import KeySet as JoseKeySet
from starlette.applications import Starlette
from starlette.routing import Mount

from doma.auth.clients import TRIES, Clients, Tries
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.routes import issuer_app, metadata_route
from doma.auth.verifier import Verifier
from doma.core import config
from doma.core.errors import AlreadyExists, BadRequest, ConfigError, NotFound, TooManyRequests

URL = "https://se.example.org:8443/cms"
AUDIENCE = "https://se.example.org:8443"
NOW = 1_800_000_000
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Keys and two clients, made once: both take time on purpose."""
    home = tmp_path_factory.mktemp("home")
    KeySet.load_or_make(home / "keys")
    clients = Clients(home / "clients.json")
    rights = ["storage.read:/", "storage.modify:/store", "fts"]
    clients.add("rucio", rights, secret="s:e%c/r+et", lifetime=600)
    clients.add("who", ["fts"], secret="x", audience=["fts.example.org"], groups=["/cms", "/cms/prod"])
    return home


@pytest.fixture(scope="module")
def keys(home):
    return KeySet.load_or_make(home / "keys")


@pytest.fixture
def clients(tmp_path):
    return Clients(tmp_path / "clients.json", clock=lambda: NOW)


@pytest.fixture
def rucio(home, tmp_path):
    """The two clients are registered."""
    shutil.copy(home / "clients.json", tmp_path / "clients.json")


@pytest.fixture
def issuer(keys, clients):
    return Issuer(URL, "cms", keys, clients=clients, clock=lambda: NOW, default_audience=AUDIENCE)


@pytest.fixture
def http(issuer):
    """A client of the whole server: the app under its VO, the RFC 8414 route beside it."""
    app = Starlette(routes=[metadata_route(issuer), Mount(issuer.path, issuer_app(issuer))])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://se.example.org:8443")


def read(token):
    head, body, _ = token.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, body))


# keys


def test_keys_are_made_once_and_private(tmp_path):
    first = KeySet.load_or_make(tmp_path / "keys").jwks()
    assert KeySet.load_or_make(tmp_path / "keys").jwks() == first
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    files = sorted(path.name for path in (tmp_path / "keys").iterdir())
    assert files == ["es256.pem", "rs256.pem"]
    for name in files:
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    assert {(key["kty"], key["alg"], key["use"]) for key in first["keys"]} == {
        ("RSA", "RS256", "sig"),
        ("EC", "ES256", "sig"),
    }
    assert all(not {"d", "p", "q"} & key.keys() for key in first["keys"])


def test_processes_that_start_at_once_get_the_same_keys(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(KeySet.load_or_make(tmp_path).jwks())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4


def test_a_key_id_is_the_thumbprint_of_rfc_7638(keys):
    for key in keys.jwks()["keys"]:
        members = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y")}[key["kty"]]
        digest = hashes.Hash(hashes.SHA256())
        digest.update(
            json.dumps({m: key[m] for m in members}, separators=(",", ":"), sort_keys=True).encode()
        )
        assert key["kid"] == base64.urlsafe_b64encode(digest.finalize()).rstrip(b"=").decode()


@pytest.mark.parametrize("name", ["rs256.pem", "es256.pem"])
@pytest.mark.parametrize("how", ["torn", "empty", "public", "other", "readable", "directory", "text"])
def test_a_key_file_that_cannot_be_used_is_named_and_left_alone(tmp_path, home, name, how):
    shutil.copytree(home / "keys", tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    whole = path.read_bytes()
    other = (tmp_path / ({"rs256.pem", "es256.pem"} - {name}).pop()).read_bytes()
    content = {"torn": whole[: len(whole) // 2], "empty": b"", "other": other, "text": b"hello"}
    if how == "directory":
        path.unlink()
        path.mkdir()
    elif how == "readable":
        path.chmod(0o640)
    elif how == "public":
        public = serialization.load_pem_private_key(whole, None).public_key()
        path.write_bytes(public.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    else:
        path.write_bytes(content[how])
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigError, match=str(path)):
        KeySet.load_or_make(tmp_path)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_weak_rsa_key_is_refused(tmp_path):
    key = rsa.generate_private_key(65537, 1024)
    data = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "rs256.pem"
    path.touch(0o600)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"rs256\.pem"):
        KeySet.load_or_make(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        KeySet.load_or_make(tmp_path / "file" / "keys")


# what is signed


def test_a_token_has_every_claim_that_others_need(issuer):
    head, claims = read(
        issuer.issue(
            subject="alice",
            scopes="storage.read:/a  fts storage.read:/a",
            audience=["a", "b", "a"],
            groups=["/cms"],
            client="web",
        )
    )
    assert head["typ"] == "JWT"
    assert head["alg"] == "RS256"
    jti = claims.pop("jti")
    assert len(jti) == 36
    assert claims == {
        "iss": URL,
        "sub": "alice",
        "aud": ["a", "b"],
        "exp": NOW + 3600,
        "iat": NOW,
        "nbf": NOW - 60,
        "scope": "storage.read:/a fts",
        "wlcg.ver": "1.0",
        "client_id": "web",
        "wlcg.groups": ["/cms"],
    }
    _, other = read(issuer.issue(subject="alice", scopes="", audience=[], lifetime=60))
    assert other["aud"] == AUDIENCE
    assert other["exp"] == NOW + 60
    assert other["jti"] != jti
    assert "wlcg.groups" not in other


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
async def test_our_own_verifier_believes_it(issuer, keys, alg):
    check = Verifier(
        [config.Issuer(issuer=URL, vo="cms")], [AUDIENCE], local={URL: keys.jwks}, clock=lambda: NOW
    )
    token = issuer.issue(
        subject="alice", scopes="storage.read:/a%20b", audience=[AUDIENCE], groups=["/cms/x"], alg=alg
    )
    identity = await check.verify(token)
    assert identity.capabilities[0].path == "/a b"
    assert identity.groups == ("/cms/x",)


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_anybody_can_verify_it_with_the_public_keys_alone(issuer, keys, alg):
    """By joserfc's own JWT code, and by bare cryptography from the numbers of the JWK."""
    token = issuer.issue(subject="alice", scopes="storage.read:/", audience=["x"], alg=alg)
    published = json.loads(json.dumps(keys.jwks()))
    assert jwt.decode(token, JoseKeySet.import_key_set(published), algorithms=[alg]).claims["sub"] == "alice"

    head, _ = read(token)
    key = next(k for k in published["keys"] if k["kid"] == head["kid"])
    number = lambda name: int.from_bytes(base64.urlsafe_b64decode(key[name] + "=="))  # noqa: E731
    data, _, text = token.rpartition(".")
    signature = base64.urlsafe_b64decode(text + "==")
    if alg == "RS256":
        public = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
        public.verify(signature, data.encode(), padding.PKCS1v15(), hashes.SHA256())
    else:
        pair = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        point = ec.EllipticCurvePublicNumbers(number("x"), number("y"), ec.SECP256R1()).public_key()
        point.verify(pair, data.encode(), ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": "storage.read"},
        {"scopes": "storage.read:a"},
        {"scopes": "storage.read:/a/../b"},
        {"scopes": "fts\nx"},
        {"scopes": "wlcg.groups:cms"},
        {"subject": ""},
        {"subject": "ä"},
        {"subject": "a" * 256},
        {"audience": ["a b"]},
        {"audience": [""]},
        {"groups": ["cms"]},
        {"lifetime": 0},
        {"lifetime": -1},
        {"lifetime": float("nan")},
        {"lifetime": float("inf")},
        {"alg": "none"},
    ],
    ids=str,
)
def test_what_would_be_malformed_is_not_signed(issuer, wrong):
    with pytest.raises(BadRequest):
        issuer.issue(**{"subject": "alice", "scopes": "fts", "audience": ["x"], **wrong})


def test_an_audience_must_come_from_somewhere(keys, clients):
    with pytest.raises(BadRequest, match="audience"):
        Issuer(URL, "cms", keys, clients=clients).issue(subject="a", scopes="", audience=[])
    with pytest.raises(ConfigError, match="VO"):
        Issuer("https://se.example.org:8443/", "cms", keys, clients=clients)


# clients


def test_a_client_is_known_by_its_secret_alone_also_after_a_restart(clients, tmp_path):
    secret = clients.add("rucio", ["storage.read:/"])
    for each in (clients, Clients(tmp_path / "clients.json")):
        for _ in range(2):
            assert each.authenticate("rucio", secret).scopes == ("storage.read:/",)
            assert each.authenticate("rucio", secret + "x") is None
            assert each.authenticate("fts", secret) is None
    path = tmp_path / "clients.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()


def test_clients_added_or_removed_by_another_process_are_seen(clients, tmp_path):
    other = Clients(tmp_path / "clients.json")
    secret = other.add("fts", ["fts"], secret="s3cret")
    assert clients.authenticate("fts", secret)
    assert [client.id for client in clients] == ["fts"]
    with pytest.raises(AlreadyExists):
        clients.add("fts", [])
    other.remove("fts")
    assert clients.authenticate("fts", secret) is None
    with pytest.raises(NotFound):
        clients.remove("fts")


@pytest.mark.parametrize(
    "content", ['{"clients": [', "[]", '{"clients": [{"id": "a", "secret": "x"}]}', '{"other": 1}'], ids=repr
)
def test_a_torn_client_file_is_named(tmp_path, content):
    path = tmp_path / "clients.json"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"clients\.json"):
        Clients(path)


def test_a_client_file_that_others_can_read_is_refused(tmp_path, clients):
    clients.add("a", [])
    os.chmod(tmp_path / "clients.json", 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Clients(tmp_path / "clients.json")


@pytest.mark.parametrize(
    "wrong",
    [("", []), ("a b", []), ("a\n", []), ("a" * 129, []), ("a", ["storage.read"]), ("a", ["x y"])],
    ids=repr,
)
def test_a_malformed_client_is_not_registered(clients, wrong):
    with pytest.raises(BadRequest):
        clients.add(*wrong)
    assert list(clients) == []


def test_guessing_secrets_is_slowed_down_but_never_locks_a_proved_client_out(tmp_path):
    now = [NOW]
    clients = Clients(tmp_path / "clients.json", clock=lambda: now[0])
    secret = clients.add("rucio", [])
    clients.add("new", [], secret="right")
    assert clients.authenticate("rucio", secret)
    for name in ("rucio", "new"):
        for n in range(TRIES):
            assert clients.authenticate(name, f"guess{n}") is None
        with pytest.raises(TooManyRequests) as caught:
            clients.authenticate(name, "one more")
        assert caught.value.retry_after == 60
    assert clients.authenticate("rucio", secret)
    with pytest.raises(TooManyRequests):
        clients.authenticate("new", "right")
    now[0] += 60
    assert clients.authenticate("new", "right")


def test_a_name_that_nobody_has_costs_what_a_wrong_secret_costs(tmp_path, monkeypatch):
    from doma.auth import clients as module

    hashes, plain = [], module._hashed
    clients = Clients(tmp_path / "clients.json", clock=lambda: NOW)
    clients.add("known", [], secret="right")
    clients.add("public", [], public=True)
    monkeypatch.setattr(module, "_hashed", lambda *given: hashes.append(given[0]) or plain(*given))
    monkeypatch.setattr(module, "_COST", 2)
    for name in ("known", "unknown", "public"):
        for n in range(TRIES):
            assert clients.authenticate(name, f"guess{n}") is None
        with pytest.raises(TooManyRequests, match=name):
            clients.authenticate(name, "one more")
        assert hashes == [f"guess{n}" for n in range(TRIES)], name
        hashes.clear()
    for name in ("", "no name", "n" * 1000):
        assert clients.authenticate(name, "x") is None
    assert hashes == [], "nobody can have such a name"


def test_made_up_names_take_no_more_than_so_much_memory(monkeypatch):
    now = [NOW]
    tries = Tries(lambda: now[0])
    monkeypatch.setattr("doma.auth.clients.NAMES", 50)
    for n in range(1000):
        tries.failed(str(n))
        tries.failed("alice") if n % 40 == 0 else None
    assert tries.must_wait("alice"), "who is tried now and then is not forgotten for others"
    assert len(tries._failed) == 50
    now[0] += 60
    tries.failed("bob")
    assert list(tries._failed) == ["bob"]


# over HTTP


async def test_discovery_says_only_what_is_offered(http, issuer):
    found = await http.get("/cms/.well-known/openid-configuration")
    assert found.headers["cache-control"] == "max-age=3600"
    document = found.json()
    assert document["issuer"] == URL
    assert (await http.get("/.well-known/oauth-authorization-server/cms")).json() == document
    exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
    assert document["grant_types_supported"] == ["client_credentials", exchange]
    for name in (name for name in document if name.endswith(("_uri", "_endpoint"))):
        assert (await http.get(document[name])).status_code in {200, 405}
    assert (await http.get(document["jwks_uri"])).json() == issuer.keys.jwks()


async def ask(http, body, basic=("rucio", "s:e%c/r+et"), **headers):
    if basic:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(basic).encode()).decode()
    return await http.post(
        "/cms/token", content=body, headers={"Content-Type": "application/x-www-form-urlencoded", **headers}
    )


@pytest.mark.usefixtures("rucio")
async def test_client_credentials_give_a_token_for_what_is_covered(http):
    body = (
        "grant_type=client_credentials&audience=se1+se2&audience=se3&scope=storage.read%3A%2Fa"
        "+storage.create%3A%2Fstore%2Fx+storage.modify%3A%2Felse+offline_access"
    )
    answer = await ask(http, body)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    got = answer.json()
    assert got.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (got["token_type"], got["expires_in"], got["scope"]) == (
        "Bearer",
        600,
        "storage.read:/a storage.create:/store/x",
    )
    _, claims = read(got["access_token"])
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("rucio", "rucio", got["scope"])
    assert claims["aud"] == ["se1", "se2", "se3"]
    assert claims["exp"] - claims["iat"] == 600


@pytest.mark.usefixtures("rucio")
async def test_a_form_without_percent_encoding_is_read_as_fts_writes_it(http):
    answer = await ask(
        http,
        "grant_type=client_credentials&scope=storage.read:/a/b=c storage.modify:/store fts"
        "&audience=https://se.example.org:8443 se2",
        **{"Content-Type": "text/plain"},
    )
    assert answer.json()["scope"] == "storage.read:/a/b=c storage.modify:/store fts"
    assert read(answer.json()["access_token"])[1]["aud"] == ["https://se.example.org:8443", "se2"]


@pytest.mark.usefixtures("rucio")
@pytest.mark.parametrize(
    "encode", [lambda text: text, lambda text: quote(text, safe="")], ids=["raw", "encoded"]
)
async def test_basic_is_read_percent_decoded_and_raw(http, encode):
    basic = ("rucio", encode("s:e%c/r+et"))
    assert (await ask(http, "grant_type=client_credentials&scope=fts", basic)).status_code == 200


@pytest.mark.usefixtures("rucio")
async def test_a_client_may_authenticate_in_the_form_and_has_defaults(http):
    answer = await ask(http, "grant_type=client_credentials&scope=fts&client_id=who&client_secret=x", None)
    assert read(answer.json()["access_token"])[1]["aud"] == "fts.example.org"
    assert answer.json()["expires_in"] == 3600


@pytest.mark.usefixtures("rucio")
@pytest.mark.parametrize(
    ("scope", "groups"),
    [
        ("fts", None),
        ("fts wlcg.groups", ["/cms", "/cms/prod"]),
        ("wlcg.groups:/cms/prod", ["/cms/prod", "/cms"]),
        ("wlcg.groups wlcg.groups:/cms/prod", ["/cms", "/cms/prod"]),
    ],
)
async def test_groups_come_when_asked_in_the_order_asked(http, scope, groups):
    answer = await ask(http, f"grant_type=client_credentials&scope={scope}", ("who", "x"))
    assert read(answer.json()["access_token"])[1].get("wlcg.groups") == groups


@pytest.mark.usefixtures("rucio")
@pytest.mark.parametrize(
    ("body", "basic", "status", "error"),
    [
        ("grant_type=client_credentials&scope=fts", None, 401, "invalid_client"),
        ("grant_type=client_credentials&scope=fts", ("rucio", "wrong"), 401, "invalid_client"),
        ("grant_type=client_credentials&scope=fts", ("nobody", "x"), 401, "invalid_client"),
        (
            "grant_type=client_credentials&scope=fts",
            ("é\0", "\udcff".encode("utf-8", "replace").decode()),
            401,
            "invalid_client",
        ),
        (
            "grant_type=client_credentials&scope=fts&client_secret=x&client_id=who",
            ("who", "x"),
            400,
            "invalid_request",
        ),
        ("grant_type=client_credentials&scope=fts&client_id=rucio", ("who", "x"), 400, "invalid_request"),
        ("scope=fts", ("who", "x"), 400, "invalid_request"),
        ("", ("who", "x"), 400, "invalid_request"),
        ("{}", ("who", "x"), 400, "invalid_request"),
        ("grant_type=password&scope=fts", ("who", "x"), 400, "unsupported_grant_type"),
        ("grant_type=client_credentials&scope=fts&scope=openid", ("who", "x"), 400, "invalid_request"),
        ("grant_type=client_credentials", ("who", "x"), 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=storage.read:/", ("who", "x"), 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=fts storage.read", ("who", "x"), 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=fts storage.read:/../x", ("who", "x"), 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=fts%0Ax", ("who", "x"), 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=wlcg.groups:/atlas", ("who", "x"), 400, "access_denied"),
        ("grant_type=client_credentials&scope=fts&audience=%FF%0A", ("who", "x"), 400, "invalid_request"),
        ("a=1&" * 200, ("who", "x"), 400, "invalid_request"),
        (b"\xff\xfe=1", ("who", "x"), 400, "invalid_request"),
        ("x" * 70_000, ("who", "x"), 413, "invalid_request"),
    ],
    ids=lambda value: repr(value)[:70] if not isinstance(value, int) else str(value),
)
async def test_each_refusal_is_the_error_that_oauth_has_for_it(http, body, basic, status, error):
    answer = await ask(http, body, basic)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["error_description"].isascii()
    assert (answer.headers.get("www-authenticate", "").startswith("Basic")) == (status == 401)


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Basic eA==", "Bearer abc", "", "Digest a=b"], ids=repr
)
async def test_a_malformed_credential_is_no_client(http, header):
    answer = await ask(http, "grant_type=client_credentials&scope=fts", None, Authorization=header)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


@pytest.mark.usefixtures("rucio")
async def test_too_many_wrong_secrets_are_answered_429(http):
    for _ in range(TRIES):
        await ask(http, "grant_type=client_credentials&scope=fts", ("who", "no"))
    answer = await ask(http, "grant_type=client_credentials&scope=fts", ("who", "no"))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "60"


async def test_the_token_endpoint_takes_post_only(http):
    assert (await http.get("/cms/token")).status_code == 405


async def test_a_client_file_that_breaks_meanwhile_is_a_server_error_without_details(http, tmp_path, clients):
    secret = clients.add("who", ["fts"])
    Path(tmp_path / "clients.json").write_text("{")
    answer = await ask(http, "grant_type=client_credentials&scope=fts", ("who", secret))
    assert (answer.status_code, answer.json()["error"]) == (500, "server_error")
    assert str(tmp_path) not in answer.text

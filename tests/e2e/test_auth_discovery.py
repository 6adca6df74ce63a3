"""Keys fetched from a real issuer over TLS: discovery, outages, storms, and what it may not make us do."""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import socket
import ssl

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount

from doma.auth import discovery
from doma.auth.clients import Clients
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.routes import issuer_app, metadata_route
from doma.auth.verifier import Verifier
from doma.core import config
from doma.core.errors import InvalidToken, IssuerUnavailable

NOW = 1_800_000_000
HERE = "https://se.example.org"
MINUTE, HOUR, DAY = 60, 3600, 86400


class Clock:
    now = NOW

    def __call__(self):
        return self.now


def certificate(folder):
    """A CA and a certificate of 127.0.0.1 that it signed."""
    today = datetime.datetime.now(datetime.UTC)

    def build(name, public, issuer, key, *extensions):
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=public,
            serial_number=x509.random_serial_number(),
            not_valid_before=today - datetime.timedelta(days=1),
            not_valid_after=today + datetime.timedelta(days=1),
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(key, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    ca = build(
        "test CA",
        ca_key.public_key(),
        "test CA",
        ca_key,
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), True),
        (identifier, False),
    )
    leaf = build(
        "127.0.0.1",
        key.public_key(),
        "test CA",
        ca_key,
        (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "cert.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


class World:
    """An issuer that really listens, counts its requests, and can be told to misbehave."""

    def __init__(self, tls, keys, home):
        self.tls = tls
        self.all_keys = keys
        self.asked = []
        self.odd = {}
        self.gate = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}/cms"
        self.home = home
        self.clock = Clock()
        self.rotate("one")

    def rotate(self, name):
        self.keys = self.all_keys[name]
        clients = Clients(self.home / "clients.json")
        self.issuer = Issuer(self.url, "cms", self.keys, clients=clients, clock=self.clock)
        self.app = Starlette(
            routes=[metadata_route(self.issuer), Mount(self.issuer.path, issuer_app(self.issuer))]
        )

    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        self.asked.append(scope["path"])
        if self.gate is not None:
            await self.gate.wait()
        app = self.odd.get(scope["path"], self.app)
        await app(scope, receive, send)

    def fetches(self):
        """How often the keys were asked for, since the last time."""
        count = self.asked.count("/cms/jwks")
        self.asked.clear()
        return count

    def token(self, **changes):
        return self.issuer.issue(
            **{
                "subject": "alice",
                "scopes": "storage.read:/",
                "audience": [HERE],
                "lifetime": 30 * DAY,
                **changes,
            }
        )

    def verifier(self, cache_dir=None, **issuer):
        trusted = config.Issuer(
            **{"issuer": self.url, "vo": "cms", "ca_file": str(self.tls / "ca.pem"), **issuer}
        )
        return Verifier([trusted], [HERE], clock=self.clock, cache_dir=cache_dir)


@contextlib.asynccontextmanager
async def serving(world):
    server = uvicorn.Server(
        uvicorn.Config(
            world,
            lifespan="off",
            log_level="error",
            ws="none",
            timeout_graceful_shutdown=1,
            ssl_certfile=str(world.tls / "cert.pem"),
            ssl_keyfile=str(world.tls / "key.pem"),
        )
    )
    server.install_signal_handlers = lambda: None
    sock = socket.socket(fileno=socket.dup(world.listener.fileno()))
    task = asyncio.create_task(server.serve([sock]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await task


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    home = tmp_path_factory.mktemp("keys")
    return {name: KeySet.load_or_make(home / name) for name in ("one", "two", "stranger")}


@pytest.fixture
def world(tls, keys, tmp_path):
    world = World(tls, keys, tmp_path)
    yield world
    world.listener.close()


async def test_a_token_of_an_issuer_far_away_is_verified_with_one_fetch(world):
    check = world.verifier()
    async with serving(world):
        for alg in ("RS256", "ES256"):
            identity = await check.verify(world.token(alg=alg))
            assert (identity.subject, identity.vo) == ("alice", "cms")
    assert world.asked == ["/cms/.well-known/openid-configuration", "/cms/jwks"]


async def test_metadata_is_found_at_the_places_of_rfc_8414_too(world):
    async def missing(scope, receive, send):
        await Response(status_code=404)(scope, receive, send)

    world.odd["/cms/.well-known/openid-configuration"] = missing
    async with serving(world):
        assert await world.verifier().verify(world.token())
    assert world.asked[1] == "/.well-known/oauth-authorization-server/cms"


async def test_nobody_makes_us_fetch_from_an_issuer_that_is_not_trusted(world):
    check = world.verifier(issuer="https://iam.example.org/cms")
    async with serving(world):
        with pytest.raises(InvalidToken, match="not trusted"):
            await check.verify(world.token())
        jku = world.keys.sign({"iss": world.url}, "RS256")
        with pytest.raises(InvalidToken, match="not trusted"):
            await check.verify(jku)
    assert world.asked == []


async def test_a_storm_of_unknown_keys_is_one_fetch_a_minute(world):
    check = world.verifier()
    stranger = world.all_keys["stranger"]
    forged = [stranger.sign({"iss": world.url, "n": n}) for n in range(50)]

    async def storm():
        for result in await asyncio.gather(*map(check.verify, forged), return_exceptions=True):
            assert isinstance(result, InvalidToken)

    async with serving(world):
        await storm()
        assert world.fetches() == 1
        await storm()
        assert world.fetches() == 1
        await storm()
        world.clock.now += MINUTE - 1
        await storm()
        assert world.fetches() == 0
        world.clock.now += 1
        await storm()
        assert world.fetches() == 1


async def test_a_new_key_is_fetched_at_once_and_the_old_ones_verdicts_are_dropped(world):
    check = world.verifier()
    async with serving(world):
        old = world.token()
        await check.verify(old)
        world.rotate("two")
        new = world.token()
        assert (await check.verify(new)).subject == "alice"
        assert check.epoch == 1
        assert check.known(old) is None
        with pytest.raises(InvalidToken, match="is not a key"):
            await check.verify(old)


async def test_an_issuer_that_is_away_is_nobodys_problem_while_keys_are_there(world, tmp_path):
    cache = tmp_path / "cache"
    check = world.verifier(cache)
    async with serving(world):
        await check.verify(world.token())
    world.listener.close()
    world.clock.now += 2 * DAY - 1
    assert await check.verify(world.token())
    restarted = world.verifier(cache)
    assert await restarted.verify(world.token())
    with pytest.raises(InvalidToken, match="is not a key"):
        await restarted.verify(world.all_keys["stranger"].sign({"iss": world.url}))
    await restarted.close()
    world.clock.now += 1
    for each in (check, restarted, world.verifier(cache)):
        with pytest.raises(IssuerUnavailable) as caught:
            await each.verify(world.token())
        assert caught.value.retry_after == 30
        assert world.url in caught.value.message
        await each.close()


async def test_a_failure_is_remembered_for_a_minute(world):
    check = world.verifier()

    async def broken(scope, receive, send):
        await Response(status_code=500)(scope, receive, send)

    world.odd["/cms/jwks"] = broken
    async with serving(world):
        results = await asyncio.gather(
            *(check.verify(world.token()) for _ in range(20)), return_exceptions=True
        )
        assert all(
            isinstance(result, IssuerUnavailable) and "answers 500" in result.message for result in results
        )
        assert world.fetches() == 1
        world.odd.clear()
        with pytest.raises(IssuerUnavailable):
            await check.verify(world.token())
        assert world.fetches() == 0
        world.clock.now += MINUTE
        assert await check.verify(world.token())


async def test_keys_are_refreshed_in_the_background_and_no_request_waits_for_it(world):
    check = world.verifier()
    async with serving(world):
        await check.verify(world.token())
        assert world.fetches() == 1
        world.clock.now += 6 * HOUR
        world.gate = asyncio.Event()
        for _ in range(3):
            assert await check.verify(world.token())
        world.gate.set()
        async with asyncio.timeout(10):
            while world.fetches() == 0:
                await asyncio.sleep(0.01)
    await check.close()


async def test_giving_up_waiting_does_not_end_the_fetch_of_the_others(world):
    check = world.verifier()
    world.gate = asyncio.Event()
    async with serving(world):
        first, second = (asyncio.create_task(check.verify(world.token())) for _ in range(2))
        async with asyncio.timeout(10):
            while not world.asked:
                await asyncio.sleep(0.01)
        first.cancel()
        world.gate.set()
        assert (await second).subject == "alice"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert world.fetches() == 1


async def test_an_issuer_that_never_ends_its_answer_holds_up_its_own_tokens_only(world, monkeypatch):
    own = KeySet({"ES256": ECKey.generate_key("P-256")})
    here = Issuer(HERE + "/own", "own", own, clients=Clients(world.home / "own.json"), clock=world.clock)
    trusted = [
        config.Issuer(issuer=world.url, vo="cms", ca_file=str(world.tls / "ca.pem")),
        config.Issuer(issuer=here.url, vo="own"),
    ]
    check = Verifier(trusted, [HERE], clock=world.clock, local={here.url: own.jwks})

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b" ", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    world.odd["/cms/jwks"] = endless
    mine = here.issue(subject="eve", scopes="storage.read:/", audience=[HERE], lifetime=60, alg="ES256")
    async with serving(world):
        waiting = [asyncio.create_task(check.verify(world.token())) for _ in range(50)]
        async with asyncio.timeout(10):
            while "/cms/jwks" not in world.asked:
                await asyncio.sleep(0.01)
        assert (await check.verify(mine)).subject == "eve"
        assert not any(task.done() for task in waiting)
        assert world.asked.count("/cms/jwks") == 1
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await check.close()
        monkeypatch.setattr(discovery, "TOTAL", 0.2)
        with pytest.raises(IssuerUnavailable, match="no complete answer"):
            await world.verifier().verify(world.token())


def answer(build):
    async def app(scope, receive, send):
        await build()(scope, receive, send)

    return app


@pytest.mark.parametrize(
    ("path", "build", "why"),
    [
        ("/cms/jwks", lambda w: RedirectResponse("https://localhost:1/jwks"), "same host"),
        ("/cms/jwks", lambda w: RedirectResponse(f"http://127.0.0.1:{w.port}/cms/jwks"), "same host"),
        ("/cms/jwks", lambda w: RedirectResponse("/cms/jwks"), "more than 3 redirects"),
        ("/cms/jwks", lambda w: RedirectResponse("file:///etc/passwd"), "same host"),
        ("/cms/jwks", lambda w: Response(b"x" * (2 << 20)), "more than 1048576 bytes"),
        ("/cms/jwks", lambda w: Response(b"[" * 100_000), "does not answer JSON"),
        ("/cms/jwks", lambda w: JSONResponse([]), "does not answer a JSON object"),
        ("/cms/jwks", lambda w: JSONResponse({"keys": []}), "publishes no RS256 or ES256 key"),
        ("/cms/jwks", lambda w: JSONResponse({"keys": 1}), "not a JWK set"),
        ("/cms/jwks", lambda w: Response(status_code=404), "answers 404"),
        (
            None,
            lambda w: JSONResponse({"issuer": "https://other.example.org", "jwks_uri": w.url + "/jwks"}),
            "another issuer",
        ),
        (
            None,
            lambda w: JSONResponse({"issuer": w.url, "jwks_uri": f"http://127.0.0.1:{w.port}/cms/jwks"}),
            "only https",
        ),
        (None, lambda w: JSONResponse({"issuer": w.url}), "only https"),
        (None, lambda w: JSONResponse({"issuer": w.url, "jwks_uri": "https://[::bad/"}), "https"),
        (None, lambda w: Response(status_code=503), "answers 503"),
    ],
    ids=map(str, range(15)),
)
async def test_an_issuer_that_misbehaves_is_unavailable_and_leads_nowhere(world, path, build, why):
    world.odd[path or "/cms/.well-known/openid-configuration"] = answer(lambda: build(world))
    async with serving(world):
        with pytest.raises(IssuerUnavailable, match=why):
            await world.verifier().verify(world.token())
    assert len(world.asked) <= 6


async def test_a_redirect_on_the_same_host_is_followed(world):
    world.odd["/cms/jwks"] = answer(lambda: RedirectResponse("/cms/moved"))
    world.odd["/cms/moved"] = answer(lambda: JSONResponse(world.keys.jwks()))
    async with serving(world):
        assert await world.verifier().verify(world.token())


async def test_a_certificate_of_an_unknown_ca_is_not_believed(world, tmp_path):
    stranger = certificate(tmp_path)
    async with serving(world):
        for ca_file in (str(stranger / "ca.pem"), ""):
            with pytest.raises(IssuerUnavailable, match=r"(?i)certificate"):
                await world.verifier(ca_file=ca_file).verify(world.token())
    assert world.asked == []


@pytest.mark.parametrize("damage", ["torn", "other", "open", "future", "nested"])
async def test_a_damaged_key_cache_is_as_if_it_were_not_there(world, tmp_path, damage):
    cache = tmp_path / "cache"
    async with serving(world):
        await world.verifier(cache).verify(world.token())
        world.fetches()
        (file,) = cache.iterdir()
        record = json.loads(file.read_text())
        if damage == "open":
            file.chmod(0o666)
        else:
            content = {
                "torn": file.read_text()[:-20],
                "other": json.dumps({**record, "issuer": "https://other.example.org"}),
                "future": json.dumps({**record, "fetched": NOW + 1}),
                "nested": "[" * 100_000,
            }
            file.write_text(content[damage])
        assert await world.verifier(cache).verify(world.token())
        assert world.fetches() == 1
        assert await world.verifier(cache).verify(world.token())
        assert world.fetches() == 0
        assert file.stat().st_mode & 0o777 == 0o600


async def test_a_client_gets_a_token_over_tls_and_anybody_verifies_it(world):
    secret = world.issuer.clients.add("rucio", ["storage.read:/"], audience=[HERE])
    context = ssl.create_default_context(cafile=str(world.tls / "ca.pem"))
    async with serving(world), httpx.AsyncClient(verify=context, trust_env=False) as http:
        metadata = (await http.get(f"{world.url}/.well-known/openid-configuration")).json()
        form = {"grant_type": "client_credentials", "scope": "storage.read:/a"}
        got = (await http.post(metadata["token_endpoint"], data=form, auth=("rucio", secret))).json()
        identity = await world.verifier().verify(got["access_token"])
    assert (identity.subject, identity.client) == ("rucio", "rucio")
    assert got["scope"] == "storage.read:/a"

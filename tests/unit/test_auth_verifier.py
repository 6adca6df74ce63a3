"""What a token must be to be believed: rules T1-T11 and §4, with keys held in process."""

import base64
import hashlib
import hmac
import json
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.auth.audience import accepted
from doma.auth.model import Capability, Verb
from doma.auth.verifier import MAX_KNOWN, Verifier
from doma.core.config import Issuer
from doma.core.errors import ConfigError, InvalidToken

ISSUER = "https://iam.example.org/cms"
HERE = "https://se.example.org:8443"
NOW = 1_800_000_000

RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def b64(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8))


def jwk(key, kid, **more):
    public = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        return {"kty": "RSA", "kid": kid, "n": number(public.n), "e": number(public.e), **more}
    return {
        "kty": "EC",
        "crv": "P-256",
        "kid": kid,
        "x": b64(public.x.to_bytes(32)),
        "y": b64(public.y.to_bytes(32)),
        **more,
    }


JWKS = {"keys": [jwk(RSA, "r1", alg="RS256", use="sig"), jwk(EC, "e1")]}


def signature(key, data):
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def forge(header, body, key=RSA, sign=signature):
    data = f"{b64(header)}.{b64(body)}"
    return f"{data}.{b64(sign(key, data.encode()))}"


def claims(**changes):
    base = {
        "iss": ISSUER,
        "sub": "alice",
        "aud": HERE,
        "exp": NOW + 3600,
        "iat": NOW,
        "nbf": NOW - 60,
        "jti": "5f0e",
        "scope": "storage.read:/a fts",
        "wlcg.ver": "1.0",
        "client_id": "web",
    }
    named = {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in {**base, **named}.items() if v is not ...}


def token(header=None, key=RSA, **changes):
    return forge({"alg": "RS256", "kid": "r1", **(header or {})}, claims(**changes), key)


class Clock:
    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def verifier(clock=None, jwks=JWKS, skew=60.0, **issuer):
    trusted = Issuer(issuer=ISSUER, vo="cms", **issuer)
    return Verifier(
        [trusted], [HERE, "alias.example.org"], local={ISSUER: jwks}, clock=clock or Clock(), skew=skew
    )


async def refused(text, match, **how):
    """The token is refused with a message that says why and does not repeat it."""
    with pytest.raises(InvalidToken, match=match) as caught:
        await verifier(**how).verify(text)
    assert all(part not in caught.value.message for part in text.split(".") if len(part) > 20)


async def test_a_good_token_becomes_a_plain_identity():
    identity = await verifier().verify(token(wlcg__groups=["/cms", "/cms/prod"]))
    assert identity.issuer == ISSUER
    assert (identity.subject, identity.vo, identity.client, identity.jti) == ("alice", "cms", "web", "5f0e")
    assert identity.audience == (HERE,)
    assert identity.expires == NOW + 3600
    assert identity.capabilities == (Capability(Verb.READ, "/a"),)
    assert identity.scopes == ("storage.read:/a", "fts")
    assert identity.groups == ("/cms", "/cms/prod")


async def test_es256_is_as_good_as_rs256():
    text = token({"alg": "ES256", "kid": "e1"}, EC)
    assert (await verifier().verify(text)).subject == "alice"


def test_the_signature_is_what_makes_it_believed():
    text = token()
    head, body, sign = text.split(".")
    other = b64({**claims(), "sub": "root"})
    yield_ = [
        f"{head}.{other}.{sign}",
        f"{head}.{body}.{sign[:-8]}AAAAAAAA",
        f"{head}.{body}.AA",
        token(key=OTHER),
    ]
    for bad in yield_:
        with pytest.raises(InvalidToken, match="signature"):
            run(verifier().verify(bad))


def run(coroutine):
    """Drive a coroutine that never waits: keys held in process need no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as e:
        return e.value
    coroutine.close()
    raise AssertionError("it waited")


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128], ids=repr)
async def test_an_es256_signature_has_64_bytes(length):
    text = forge({"alg": "ES256", "kid": "e1"}, claims(), EC, lambda *_: b"\0" * length)
    await refused(text, "signature|not a JWT")


async def test_an_es256_signature_padded_to_65_bytes_is_refused():
    def padded(key, data):
        raw = signature(key, data)
        return raw[:32] + b"\0" + raw[32:]

    await refused(forge({"alg": "ES256", "kid": "e1"}, claims(), EC, padded), "signature")


def pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    "alg",
    ["none", "None", "HS256", "RS512", "PS256", "ES384", "EdDSA", "", None, 1, ["RS256"], {"a": 1}],
    ids=repr,
)
async def test_only_two_algorithms_exist(alg):
    await refused(token({"alg": alg}), "alg is .*expected one of RS256, ES256")


async def test_an_unsigned_token_is_no_token():
    head, body, _ = token({"alg": "none"}).split(".")
    await refused(f"{head}.{body}.", "not a JWT")


async def test_a_public_key_is_never_a_shared_secret():
    secret = pem(RSA)
    mac = lambda _, data: hmac.digest(secret, data, hashlib.sha256)  # noqa: E731
    await refused(forge({"alg": "HS256", "kid": "r1"}, claims(), RSA, mac), "alg is HS256")
    await refused(forge({"alg": "RS256", "kid": "r1"}, claims(), RSA, mac), "signature")


async def test_a_key_serves_only_the_algorithm_of_its_type():
    await refused(token({"alg": "ES256"}), "kid r1 is not a key of .* for ES256")
    await refused(token({"kid": "e1"}), "kid e1 is not a key of .* for RS256")


async def test_keys_that_a_token_brings_are_not_looked_at():
    header = {
        "kid": "mine",
        "jwk": jwk(OTHER, "mine"),
        "jku": "https://evil.example.org/jwks",
        "x5u": "https://e/",
    }
    await refused(token(header, OTHER), "kid mine is not a key")
    assert (await verifier().verify(token({**header, "kid": "r1"}))).subject == "alice"


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "x"], ids=repr)
async def test_critical_extensions_are_refused(crit):
    await refused(token({"crit": crit, "b64": False}), "crit")


@pytest.mark.parametrize("kid", [..., "", 1, None], ids=repr)
async def test_a_wlcg_token_names_its_key(kid):
    header = {k: v for k, v in {"alg": "RS256", "kid": kid}.items() if v is not ...}
    await refused(forge(header, claims()), "kid")


async def test_only_a_scitokens_issuer_with_one_key_needs_no_kid():
    text = forge({"alg": "RS256"}, claims(wlcg__ver=..., ver="scitoken:2.0", scope="read:/a", aud="ANY"))
    one = {"keys": [jwk(RSA, "r1")]}
    identity = await verifier(jwks=one, profile="scitokens").verify(text)
    assert identity.capabilities == (Capability(Verb.READ, "/a"),)
    await refused(text, "kid is missing", profile="scitokens")
    await refused(text, "kid is missing", jwks=one, profile="any")


@pytest.mark.parametrize(
    "issuer",
    ["https://evil.example.org", ISSUER + "x", ISSUER.upper(), ISSUER + "//", "", None, 1, ...],
    ids=repr,
)
async def test_the_issuer_is_one_of_ours_exactly(issuer):
    await refused(token(iss=issuer), "issuer|iss is missing")


async def test_one_trailing_slash_of_the_issuer_does_not_matter():
    assert (await verifier().verify(token(iss=ISSUER + "/"))).issuer == ISSUER


async def test_a_token_expires_to_the_second():
    clock = Clock()
    assert await verifier(clock).verify(token(exp=NOW + 1))
    for exp in (NOW, NOW - 1, NOW - 0.5, 0, -1):
        await refused(token(exp=exp), "expired")
    await refused(token(exp=...), "exp is missing")


@pytest.mark.parametrize("exp", ["1900000000", True, [], {}, 1e300, -1e300, 10**400], ids=repr)
async def test_a_time_is_a_sensible_number(exp):
    await refused(token(exp=exp), "exp|JSON")
    await refused(token(nbf=exp), "nbf|JSON")


async def test_infinity_is_not_json():
    body = json.dumps(claims()).replace(str(NOW + 3600), "Infinity").encode()
    await refused(forge({"alg": "RS256", "kid": "r1"}, body), "cannot be read as JSON")


@pytest.mark.parametrize("name", ["nbf", "iat"], ids=repr)
async def test_clocks_may_differ_by_the_configured_skew(name):
    assert await verifier().verify(token(**{name: NOW + 60}))
    await refused(token(**{name: NOW + 61}), f"{name} is 20.*at most 60 s")
    assert await verifier(skew=300).verify(token(**{name: NOW + 300}))
    with pytest.raises(ConfigError, match="clock_skew"):
        verifier(skew=301)


@pytest.mark.parametrize("missing", ["sub", "exp", "aud", "iat", "jti", "wlcg__ver"], ids=repr)
async def test_a_wlcg_token_has_all_its_claims(missing):
    await refused(token(**{missing: ...}), missing.replace("__", "."))


async def test_a_lenient_issuer_may_leave_out_iat_and_jti_only():
    assert await verifier(lenient=True).verify(token(iat=..., jti=...))
    for missing in ("sub", "exp", "aud", "wlcg__ver"):
        await refused(token(**{missing: ...}), missing.replace("__", "."), lenient=True)


@pytest.mark.parametrize("sub", ["", "a" * 256, "ä", "a\nb", "a\x00", 1, ["a"], None], ids=repr)
async def test_a_subject_is_short_printable_ascii(sub):
    await refused(token(sub=sub), "sub must be")


@pytest.mark.parametrize("version", ["1.0", "1.3", "1.99"], ids=repr)
async def test_every_minor_version_of_the_profile_is_read(version):
    assert await verifier().verify(token(wlcg__ver=version))


@pytest.mark.parametrize(
    "version",
    ["2.0", "0.9", "1", "1.", "1.0.0", "one", "", 1.0, ["1.0"], "9" * 5000 + ".0", "1.0\n"],
    ids=repr,
)
async def test_every_other_version_is_refused(version):
    await refused(token(wlcg__ver=version), r"wlcg\.ver")


async def test_each_issuer_speaks_its_profile():
    sci = token(wlcg__ver=..., ver="scitokens:2.0", scope="read:/a write:/b", sub=..., jti=..., iat=...)
    plain = token(wlcg__ver=..., scope="storage.read:/a read:/b")
    both = token(ver="scitoken:2.0", scope="storage.read:/a read:/b")
    await refused(sci, "profile wlcg")
    await refused(plain, "profile wlcg")
    await refused(plain, "profile scitokens", profile="scitokens")
    await refused(both, "profile scitokens", profile="scitokens")
    assert len((await verifier(profile="any").verify(sci)).capabilities) == 3
    assert len((await verifier(profile="any").verify(plain)).capabilities) == 2
    assert (await verifier(profile="any").verify(both)).capabilities == (Capability(Verb.READ, "/a"),)


@pytest.mark.parametrize(
    "aud",
    [
        HERE,
        "https://se.example.org",
        "se.example.org",
        "se.example.org:8443",
        "alias.example.org",
        "https://alias.example.org",
        "https://wlcg.cern.ch/jwt/v1/any",
        ["x", HERE],
    ],
    ids=repr,
)
async def test_every_name_of_this_server_is_an_audience(aud):
    assert await verifier().verify(token(aud=aud))


@pytest.mark.parametrize(
    "aud",
    [
        "https://evil.example.org",
        HERE + "/",
        "https://se.example.org:443",
        "SE.example.org",
        "se.example.org:8444",
        "http://se.example.org",
        "",
        "ANY",
        "se",
        [],
        ["x"],
        [HERE, 1],
        None,
        1,
        {HERE: 1},
        ...,
        f"{HERE} x",
    ],
    ids=repr,
)
async def test_no_other_audience_is_accepted(aud):
    await refused(token(aud=aud), "aud is")


async def test_the_refusal_of_an_audience_says_both_names():
    with pytest.raises(InvalidToken) as caught:
        await verifier().verify(token(aud="https://a.example.org"))
    assert caught.value.message == (
        "token: aud is https://a.example.org, this is https://alias.example.org:443; ask for that audience"
    )


async def test_wildcards_can_be_switched_off():
    await refused(token(aud="https://wlcg.cern.ch/jwt/v1/any"), "aud is", wildcard_audience=False)
    sci = {"wlcg__ver": ..., "ver": "scitoken:2.0", "aud": "ANY", "scope": "read:/a"}
    assert await verifier(profile="any").verify(token(**sci))
    await refused(token(**sci), "aud is", profile="any", wildcard_audience=False)


def test_our_own_names_are_normalised_once():
    assert accepted(["https://H.example.org:443/"]) == accepted(["https://h.example.org"]) | {
        "https://H.example.org:443"
    }
    assert "[::1]:8443" in accepted(["https://[::1]:8443"])
    assert accepted(["condor://h.example.org", "https://h.example.org/api/"]) == {
        "condor://h.example.org",
        "https://h.example.org/api",
    }
    for bad in ("", " ", "a b", "https://h:port", "https://[::1", "https://h:70000"):
        with pytest.raises(ConfigError):
            accepted([bad])


async def test_an_id_token_is_not_an_access_token():
    await refused(token(scope=..., nonce="x"), "ID token")
    await refused(token(scope=..., at_hash="x"), "ID token")
    assert (await verifier().verify(token(scope=...))).capabilities == ()


@pytest.mark.parametrize(
    "scope",
    [
        "storage.read",
        "fts storage.read:a",
        "storage.read:/a/../b",
        ["storage.read"],
        1,
        {},
        "storage.read:/%2e%2e",
    ],
    ids=repr,
)
async def test_a_malformed_scope_spoils_the_token(scope):
    await refused(token(scope=scope), "scope")


async def test_a_scope_array_is_read():
    assert (await verifier().verify(token(scope=["storage.read:/a", "fts"]))).scopes == (
        "storage.read:/a",
        "fts",
    )


async def test_only_well_formed_groups_of_the_issuers_own_vo_count():
    named = ["/atlas", "/cms/uscms", "cms", "/cms/../x", "/cms/", "/cms", "/cmsx", "/cms//a", "/cms/-a"]
    assert (await verifier().verify(token(wlcg__groups=named))).groups == ("/cms/uscms", "/cms")
    for bad in ("/cms", {"a": 1}, [1], 1):
        await refused(token(wlcg__groups=bad), r"wlcg\.groups")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "a.b.c",
        "é.b.c",
        "a b.c.d",
        "\ud800.a.b",
        "AAAA.AAAA.AAAA",
        "=.=.=",
        "\n",
        "MDAyMWxvY2F0aW9u",
    ],
    ids=repr,
)
async def test_what_is_no_jwt_is_refused(text):
    await refused(text, "not a JWT|base64url|JSON")


async def test_a_huge_token_is_refused_unread():
    await refused(token(x="a" * (16 << 10)), "at most 16384")
    assert await verifier().verify(token(x="a" * 10_000))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 11000,
        b'{"a":' * 2000,
        b"[]",
        b'"x"',
        b"1",
        b"",
        b"\xff",
        b'{"iss":"a","iss":"b"}',
        b"9" * 6000,
        b"\xef\xbb\xbf{}",
    ],
    ids=repr,
)
async def test_json_bombs_and_nonsense_are_refused(body):
    await refused(forge({"alg": "RS256", "kid": "r1"}, body), "JSON|not a JWT")
    await refused(forge(body, claims()), "JSON|not a JWT")


async def test_a_known_token_is_answered_without_waiting_until_it_expires_or_for_five_minutes():
    clock = Clock()
    check = verifier(clock)
    long, short = token(), token(exp=NOW + 10)
    assert check.known(long) is None
    assert await check.verify(long) is check.known(long)
    await check.verify(short)
    clock.now = NOW + 9.99
    assert check.known(short)
    clock.now = NOW + 10
    assert check.known(short) is None
    with pytest.raises(InvalidToken, match="expired"):
        await check.verify(short)
    clock.now = NOW + 299
    assert check.known(long)
    clock.now = NOW + 300
    assert check.known(long) is None
    assert await check.verify(long)
    assert check.known(long)


async def test_a_refused_token_is_never_known():
    check = verifier()
    bad = token(key=OTHER)
    with pytest.raises(InvalidToken):
        await check.verify(bad)
    assert check.known(bad) is None


async def test_forgetting_drops_all_verdicts_and_starts_a_new_epoch():
    check = verifier()
    text = token()
    await check.verify(text)
    before = check.epoch
    check.forget()
    assert check.known(text) is None
    assert check.epoch == before + 1


async def test_when_a_key_goes_its_verdicts_go_too():
    current = dict(JWKS)
    check = verifier(jwks=lambda: current)
    text, other = token(), token({"alg": "ES256", "kid": "e1"}, EC)
    await check.verify(text)
    current = {"keys": [JWKS["keys"][1], jwk(OTHER, "r2")]}
    assert await check.verify(other)
    assert check.epoch == 1
    assert check.known(text) is None
    with pytest.raises(InvalidToken, match="kid r1 is not a key"):
        await check.verify(text)
    assert await check.verify(token({"kid": "r2"}, OTHER))
    current = {"keys": [*current["keys"], jwk(RSA, "r3")]}
    assert await check.verify(token({"kid": "r3"}))
    assert check.epoch == 1


async def test_an_issuer_whose_keys_change_all_the_time_costs_no_other_its_verdicts():
    restless, other = dict(JWKS), "https://other.example.org/"
    check = Verifier(
        [Issuer(issuer=other, vo="x"), Issuer(issuer=ISSUER)], [HERE],
        local={other: JWKS, ISSUER: lambda: restless}, clock=Clock(),
    )  # fmt: skip
    mine, its = token(iss=other), token()
    await check.verify(mine)
    await check.verify(its)
    restless = {"keys": [JWKS["keys"][1], jwk(OTHER, "r2")]}
    await check.verify(token({"kid": "r2"}, OTHER))
    assert check.known(its) is None
    assert check.known(mine)


async def test_who_kept_an_identity_looks_again_though_its_verdict_had_to_make_room():
    check = verifier()
    await check.verify(token())
    before = check.epoch
    check.drop({"a token whose verdict is not remembered any more"})
    assert check.epoch > before


async def test_weak_foreign_and_private_entries_of_a_key_set_are_left_out():
    weak = rsa.generate_private_key(65537, 1024)
    p384 = ec.generate_private_key(ec.SECP384R1())
    point = p384.public_key().public_numbers()
    entries = [
        jwk(weak, "weak"),
        jwk(RSA, "enc", use="enc"),
        jwk(RSA, "ps", alg="PS256"),
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        {
            "kty": "EC",
            "crv": "P-384",
            "kid": "p384",
            "x": b64(point.x.to_bytes(48)),
            "y": b64(point.y.to_bytes(48)),
        },
        {"kty": "EC", "crv": "P-256", "kid": "off", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)},
        {"kty": "RSA", "kid": "half", "n": "AQAB"},
        {"kty": "RSA", "kid": "bad", "n": 1, "e": [2]},
        "text",
        None,
        jwk(RSA, "good"),
    ]
    for kid, key in (("weak", weak), ("enc", RSA), ("ps", RSA), ("oct", RSA), ("half", RSA), ("bad", RSA)):
        await refused(token({"kid": kid}, key), "is not a key", jwks={"keys": entries})
    assert await verifier(jwks={"keys": entries}).verify(token({"kid": "good"}))


def test_a_wrong_configuration_is_refused_when_it_is_read():
    one = Issuer(issuer=ISSUER)
    for issuers, local in (
        ([one, Issuer(issuer=ISSUER + "/")], {}),
        ([one], {"https://other.example.org": JWKS}),
        ([Issuer(issuer="http://iam.example.org")], {}),
        ([Issuer(issuer="iam.example.org")], {}),
        ([Issuer(issuer="https://[::1/cms")], {}),
        ([Issuer(issuer="https://u:p@iam.example.org")], {}),
        ([Issuer(issuer=ISSUER, ca_file="/nonexistent.pem")], {}),
    ):
        with pytest.raises(ConfigError):
            Verifier(issuers, [HERE], local=local)


async def test_memory_for_verdicts_is_bounded(monkeypatch):
    monkeypatch.setattr("doma.auth.verifier.MAX_KNOWN", 3)
    check = verifier()
    texts = [token(jti=str(n)) for n in range(5)]
    for text in texts:
        await check.verify(text)
    assert [check.known(text) is not None for text in texts] == [False, False, True, True, True]
    monkeypatch.setattr("doma.auth.verifier.MAX_KNOWN", MAX_KNOWN)
    monkeypatch.setattr("doma.auth.verifier.MAX_KNOWN_BYTES", len(texts[0]) + 10)
    await check.verify(token(jti="last"))
    assert [check.known(text) for text in texts] == [None] * 5


GOOD = token()
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(st.sampled_from([*claims(), "wlcg.groups", "ver", "nonce"]), json_values)
def test_any_signed_claim_gives_an_identity_or_our_own_refusal(name, value):
    body = {**claims(), name: value}
    try:
        identity = run(verifier(profile="any").verify(forge({"alg": "ES256", "kid": "e1"}, body, EC)))
    except InvalidToken as e:
        message = e.message
        assert message.isprintable()
    else:
        assert identity.expires > NOW
        assert (
            set(identity.audience) & accepted([HERE, "alias.example.org"])
            or "any" in identity.audience[0]
            or "ANY" in identity.audience
        )


@settings(max_examples=150)
@given(st.integers(0, len(GOOD) - 1), st.sampled_from("AZaz09-_.=/ é"))
def test_no_changed_character_goes_unnoticed(place, char):
    changed = GOOD[:place] + char + GOOD[place + 1 :]
    # The last character of each part carries unused bits: the same bytes may be written in several ways.
    if changed == GOOD or place + 1 in {len(GOOD), GOOD.index("."), GOOD.rindex(".")}:
        return
    with pytest.raises(InvalidToken):
        run(verifier().verify(changed))


@given(st.text(max_size=300))
def test_any_text_is_refused_with_our_error(text):
    with pytest.raises(InvalidToken):
        run(verifier().verify(text))


def test_a_clock_is_the_systems_unless_given():
    fresh = forge(
        {"alg": "RS256", "kid": "r1"}, claims(exp=int(time.time()) + 100, iat=int(time.time()), nbf=0)
    )
    check = Verifier([Issuer(issuer=ISSUER)], [HERE], local={ISSUER: JWKS})
    assert run(check.verify(fresh)).subject == "alice"

"""Endpoints' policies from the configuration: issuers, areas, groups; limits of an issuer's tokens."""

import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import ECKey, RSAKey
from scitokens import SciToken

from doma.auth.keys import KeySet
from doma.auth.model import Capability, Identity, Verb
from doma.auth.policy import gate_of
from doma.auth.scopes import capabilities
from doma.auth.verifier import Verifier
from doma.core.config import Endpoint, Issuer
from doma.core.errors import ConfigError, Forbidden, InvalidToken

CMS = Issuer(issuer="https://iam.example.org/cms", vo="cms", prefixes=("/cms",))
ATLAS = Issuer(issuer="https://iam.example.org/atlas/", vo="atlas", prefixes=("/atlas",))
HERE = "https://se.example.org:8443"


def who(scope="", groups=(), issuer=CMS, only=""):
    words = tuple(scope.split())
    return Identity(
        issuer.issuer, "alice", 9e9, capabilities=capabilities(words), scopes=words, groups=groups, only=only
    )


def gate(name="site", trusted=(CMS, ATLAS), **section):
    return gate_of(name, Endpoint(store="memory:", **section), trusted)


def test_each_issuer_has_its_own_area():
    found = gate()
    assert found.may(who("storage.read:/a"), Verb.READ, "/cms/a/b")
    assert not found.may(who("storage.read:/"), Verb.READ, "/atlas/a")
    assert found.may(who("storage.read:/", issuer=ATLAS), Verb.READ, "/atlas/a")
    with pytest.raises(Forbidden, match="outside the area"):
        found.decide(who("storage.read:/"), Verb.READ, "/atlas/a")


@pytest.mark.parametrize("spelling", ["atlas", "https://iam.example.org/atlas", ATLAS.issuer])
def test_an_endpoint_may_trust_some_issuers_only_and_give_them_other_areas(spelling):
    found = gate(issuers={spelling: ("/data/atlas", "/scratch")})
    assert not found.may(who("storage.read:/"), Verb.READ, "/cms/a")
    assert found.may(who("storage.read:/a", issuer=ATLAS), Verb.READ, "/scratch/a")
    assert not found.may(who("storage.read:/", issuer=ATLAS), Verb.READ, "/atlas/a")
    same = gate(issuers={spelling: ()})
    assert same.may(who("storage.read:/", issuer=ATLAS), Verb.READ, "/atlas/a")


GROUPS = {
    "/cms": ("storage.read:/",),
    "/cms/prod": ("storage.read:/", "storage.modify:/mc/", "storage.stage:/"),
}


def test_groups_count_for_tokens_without_any_capability_and_below_their_issuers_area():
    found = gate(groups=GROUPS)
    member = who("openid wlcg.groups", ("/cms/prod",))
    assert found.may(member, Verb.MODIFY, "/cms/mc/x")
    assert found.may(member, Verb.STAGE, "/cms/x")
    assert not found.may(member, Verb.MODIFY, "/cms/data")
    assert not found.may(member, Verb.READ, "/atlas/x")
    assert not found.may(who("", ("/cms/prod/sub",)), Verb.READ, "/cms/x")
    assert not found.may(who("", ("/cms/produce",)), Verb.READ, "/cms/x")


@pytest.mark.parametrize(
    "scope", ["storage.read:/else", "compute.read", "host.auth", "storage.poll:/", "storage.nothing:/"]
)
def test_any_capability_switches_the_groups_off(scope):
    found = gate(groups=GROUPS)
    assert not found.may(who(scope, ("/cms/prod",)), Verb.READ, "/cms/mc/x")


def test_a_token_for_locality_asks_for_nothing_else():
    found = gate()
    identity = who("storage.poll:/")
    assert found.may(identity, Verb.POLL, "/cms/a")
    assert not any(found.may(identity, verb, "/cms/a") for verb in Verb if verb is not Verb.POLL)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"issuers": {"lhcb": ()}}, "lhcb"),
        ({"issuers": {"cms": ("relative",)}}, "policy"),
        ({"groups": {"cms": ("storage.read:/",)}}, "/vo/group"),
        ({"groups": {"/cms": ("storage.read",)}}, "path is missing"),
        ({"groups": {"/cms": ("storage.read:/a/../b",)}}, r"\.\."),
        ({"groups": {"/cms": ("read:/",)}}, "grants nothing"),
        ({"groups": {"/cms": ("storage.raed:/",)}}, "grants nothing"),
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused_at_start(section, says):
    with pytest.raises(ConfigError, match=says):
        gate(**section)


def test_an_issuer_without_vo_can_claim_no_group_of_others():
    anybody = Issuer(issuer="https://iam.example.org/any")
    with pytest.raises(ConfigError, match="could claim any group"):
        gate(trusted=(CMS, anybody), groups=GROUPS)
    assert gate_of("site", Endpoint(store="memory:", issuers={"cms": ()}, groups=GROUPS), (CMS, anybody))


def test_an_identity_limited_to_one_endpoint_counts_there_alone_and_only_while_its_issuer_does():
    limited = Identity(CMS.issuer, "alice", 9e9, capabilities=(Capability(Verb.READ, "/cms/a"),), only="site")
    assert gate().may(limited, Verb.READ, "/cms/a/b")
    assert not gate().may(limited, Verb.READ, "/cms/cms/a/b")
    for other in (gate(name="other"), gate(name=""), gate(trusted=(ATLAS,))):
        assert not other.may(limited, Verb.READ, "/cms/a/b")
        with pytest.raises(Forbidden, match="macaroon"):
            other.decide(limited, Verb.READ, "/cms/a/b")


# lifetimes


@pytest.fixture(scope="module")
def keys():
    return KeySet({"ES256": ECKey.generate_key("P-256")})


async def identity_of(keys, *, max_lifetime=0.0, lenient=False, **claims):
    issuer = Issuer(issuer=CMS.issuer, vo="cms", max_lifetime=max_lifetime, lenient=lenient)
    now = int(time.time())
    body = {
        "iss": CMS.issuer, "sub": "a", "aud": HERE, "exp": now + 600, "iat": now, "jti": "1",
        "wlcg.ver": "1.0", "scope": "fts",
    } | claims  # fmt: skip
    token = keys.sign({name: value for name, value in body.items() if value is not None}, "ES256")
    return await Verifier([issuer], [HERE], local={CMS.issuer: keys.jwks}).verify(token)


async def test_a_token_that_lives_too_long_for_its_issuer_is_refused(keys):
    assert await identity_of(keys, max_lifetime=600)
    assert await identity_of(keys)
    with pytest.raises(InvalidToken, match=r"lives 600 s .* may give 599 s"):
        await identity_of(keys, max_lifetime=599)
    with pytest.raises(InvalidToken, match="lives"):  # nobody gets a longer life by hiding when it began
        await identity_of(keys, max_lifetime=500, lenient=True, iat=None)


# SciTokens, made by their own library

SCI = Issuer(issuer="https://sci.example.org", vo="osg", profile="scitokens", prefixes=("/osg",))


def scitoken(kind, **claims):
    key = (
        rsa.generate_private_key(65537, 2048) if kind == "RS256" else ec.generate_private_key(ec.SECP256R1())
    )
    made = SciToken(key=key, key_id="k1")
    for name, value in (
        {"scope": "read:/data write:/up", "aud": HERE, "sub": "osg", "ver": "scitoken:2.0"} | claims
    ).items():
        made.update_claims({name: value})
    token = made.serialize(issuer=SCI.issuer, lifetime=600).decode()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = (RSAKey if kind == "RS256" else ECKey).import_key(pem).as_dict(private=False)
    return token, {"keys": [public | {"kid": "k1"}]}


@pytest.mark.parametrize("kind", ["RS256", "ES256"])
async def test_a_token_of_the_scitokens_library_gives_what_its_profile_says(kind):
    token, jwks = scitoken(kind)
    identity = await Verifier([SCI], [HERE], local={SCI.issuer: jwks}).verify(token)
    found = gate_of("site", Endpoint(store="memory:"), (SCI,))
    assert found.may(identity, Verb.READ, "/osg/data/x")
    assert not found.may(identity, Verb.MODIFY, "/osg/data/x")
    assert found.may(identity, Verb.CREATE, "/osg/up/x")
    assert found.may(identity, Verb.MODIFY, "/osg/up/x")
    assert not found.may(identity, Verb.READ, "/osg/up/x")


async def test_the_wildcard_of_scitokens_can_be_switched_off():
    token, jwks = scitoken("ES256", aud="ANY")
    assert await Verifier([SCI], [HERE], local={SCI.issuer: jwks}).verify(token)
    strict = SCI.model_copy(update={"wildcard_audience": False})
    with pytest.raises(InvalidToken, match="aud is ANY"):
        await Verifier([strict], [HERE], local={SCI.issuer: jwks}).verify(token)


async def test_scitokens_scopes_mean_nothing_in_a_wlcg_token(keys):
    identity = await identity_of(keys, scope="read:/ write:/ storage.read:/a")
    assert [str(right.verb) for right in identity.capabilities] == ["read"]
    with pytest.raises(InvalidToken, match="profile wlcg"):
        await identity_of(keys, **{"wlcg.ver": None, "ver": "scitoken:2.0"})

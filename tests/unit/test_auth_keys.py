"""Signing keys that change while processes run: published before they sign, kept after."""

import base64
import json

import pytest

from doma.auth.keys import KEEP, PUBLISHED, KeySet, rotate
from doma.auth.verifier import Verifier
from doma.core.config import Issuer
from doma.core.errors import BadRequest, ConfigError, Conflict, InvalidToken

NOW = 1_800_000_000.0
ISSUER = "https://iam.example.org/cms"


@pytest.fixture
def now():
    return [NOW]


@pytest.fixture
def keys(tmp_path, now):
    return KeySet.load_or_make(tmp_path, clock=lambda: now[0])


def signer(keys, alg="ES256"):
    head = keys.sign({}, alg).split(".")[0]
    return json.loads(base64.urlsafe_b64decode(head + "=="))["kid"]


def published(keys):
    return [key["kid"] for key in keys.jwks()["keys"] if key["alg"] == "ES256"]


def test_a_new_key_is_published_before_it_signs_and_the_old_one_stays(keys, tmp_path, now):
    old = signer(keys)
    assert published(keys) == [old]
    assert rotate(tmp_path, NOW) == NOW + PUBLISHED
    assert signer(keys) == old
    assert len(published(keys)) == 2
    assert keys.jwks() is keys.jwks()
    now[0] += PUBLISHED
    new = signer(keys)
    assert new != old
    assert new != signer(keys, "RS256")
    assert published(keys) == [old, new]
    again = KeySet.load_or_make(tmp_path, clock=lambda: now[0])
    assert (signer(again), published(again)) == (new, [old, new])
    now[0] += KEEP
    assert published(keys) == [new]


def test_keys_that_wait_are_not_replaced_unless_in_a_hurry(keys, tmp_path, now):
    old = signer(keys)
    rotate(tmp_path, NOW)
    waiting = published(keys)[1]
    with pytest.raises(Conflict, match="sign from"):
        rotate(tmp_path, NOW + 1)
    now[0] += 2
    rotate(tmp_path, now[0], at_once=True)
    assert signer(keys) not in {old, waiting}
    assert published(keys) == [old, signer(keys)]


def test_withdrawn_keys_are_gone_with_their_files(keys, tmp_path, now):
    old = signer(keys)
    with pytest.raises(BadRequest, match="--now"):
        rotate(tmp_path, NOW, drop=True)
    rotate(tmp_path, NOW, at_once=True, drop=True)
    assert published(keys) == [signer(keys)]
    assert old not in published(keys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["es256-2.pem", "rotation.json", "rs256-2.pem"]
    again = KeySet.load_or_make(tmp_path, clock=lambda: now[0])
    assert signer(again) == signer(keys)
    assert not (tmp_path / "rs256.pem").exists()
    rotate(tmp_path, NOW + 5, at_once=True)
    now[0] += 5
    assert published(again) == published(keys)
    assert len(published(keys)) == 2


def test_old_keys_are_removed_when_nothing_they_signed_can_live(keys, tmp_path, now):
    rotate(tmp_path, NOW, at_once=True)
    rotate(tmp_path, NOW + KEEP + 1, at_once=True)
    assert not (tmp_path / "rs256.pem").exists()
    now[0] += KEEP + 1
    assert len(published(keys)) == 2


def test_a_clock_that_is_behind_still_finds_a_key(keys, tmp_path, now):
    rotate(tmp_path, NOW, at_once=True, drop=True)
    now[0] -= 60
    assert signer(keys)


@pytest.mark.parametrize("content", ["{", "[]", '{"generations": []}', '{"generations": [{"number": "x"}]}'])
def test_a_torn_plan_is_named(keys, tmp_path, content):
    rotate(tmp_path, NOW)
    (tmp_path / "rotation.json").write_text(content)
    with pytest.raises(ConfigError, match=r"rotation\.json"):
        keys.jwks()
    with pytest.raises(ConfigError, match=r"rotation\.json"):
        KeySet.load_or_make(tmp_path)


async def test_our_verifier_follows_and_forgets_what_withdrawn_keys_signed(keys, tmp_path, now):
    check = Verifier([Issuer(issuer=ISSUER)], ["se"], local={ISSUER: keys.jwks}, clock=lambda: now[0])
    claims = {
        "iss": ISSUER, "sub": "a", "aud": "se", "exp": NOW + 600, "iat": NOW, "jti": "1", "wlcg.ver": "1.0",
    }  # fmt: skip
    old = keys.sign(claims)
    assert await check.verify(old)
    rotate(tmp_path, NOW, at_once=True)
    assert await check.verify(keys.sign(claims))
    assert await check.verify(old)
    rotate(tmp_path, NOW + 1, at_once=True, drop=True)
    now[0] += 1
    assert await check.verify(keys.sign(claims))
    with pytest.raises(InvalidToken, match="is not a key"):
        await check.verify(old)

"""Macaroons: the packets, the chain, and that a caveat can only take away."""

import base64
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.auth.gate import Gate
from doma.auth.keys import Secrets
from doma.auth.macaroon import ACTIVITIES, MAX_CAVEATS, Macaroon, Macaroons, parsed, serialised
from doma.auth.model import Identity, Verb
from doma.auth.verifier import Verifier
from doma.core.config import Issuer
from doma.core.errors import BadRequest, ConfigError, InvalidToken

ISSUER = "https://iam.example.org/cms"
NOW = 1_800_000_000.0
KEY, OTHER = b"k" * 32, b"o" * 32
ALICE = Identity(ISSUER, "alice", NOW + 3600, vo="cms", client="web", jti="j1")
HOUR = NOW + 3600


def made(activities=("DOWNLOAD", "LIST"), path="/site/a", until=HOUR, caveats=(), key=KEY):
    return Macaroons("se", lambda: [key], 86400).issue(ALICE, path, activities, until, caveats)


def with_caveats(text, *caveats):
    """What anybody who holds a macaroon can make of it, without the secret."""
    found = parsed(text)
    signature, packets = found.signature, []
    for caveat in caveats:
        signature = hmac.digest(signature, caveat, "sha256")
        packets.append(caveat)
    return raw(found.location.encode(), found.identifier, (*found.caveats, *packets), signature)


def raw(location, identifier, caveats, signature, name=b"cid"):
    def packet(key, value):
        return b"%04x" % (len(key) + len(value) + 6) + key + b" " + value + b"\n"

    data = packet(b"location", location) + packet(b"identifier", identifier)
    data += b"".join(packet(name, caveat) for caveat in caveats) + packet(b"signature", signature)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def judge(text, now=NOW, keys=(KEY,)):
    return Macaroons("se", lambda: keys, 86400).verify(text, now)


def test_the_packets_are_those_of_the_papers_library():
    """Known answer: made by libmacaroons from key, identifier and two caveats."""
    text = serialised(
        "http://mybank/",
        b"we used our secret key",
        [b"test = caveat"],
        b"this is our super secret key; only we should know it",
    )
    found = parsed(text)
    assert found.signature.hex() == "197bac7a044af33332865b9266e26d493bdd668a660e44d88ce1a998c23dbd67"
    assert found.signed_by(b"this is our super secret key; only we should know it")
    assert base64.urlsafe_b64decode(text + "==").startswith(b"001clocation http://mybank/\n")


def test_a_macaroon_says_who_where_and_what():
    identity = judge(made())
    assert (identity.issuer, identity.subject, identity.vo, identity.client) == (
        ISSUER,
        "alice",
        "cms",
        "web",
    )
    assert (identity.expires, identity.jti, identity.only) == (HOUR, "j1", "site")
    assert {(c.verb, c.path) for c in identity.capabilities} == {(Verb.READ, "/a"), (Verb.LIST, "/a")}
    assert identity.scopes == ()
    assert identity.groups == ()


@pytest.mark.parametrize(
    ("activities", "verbs"),
    [
        (["DOWNLOAD"], {Verb.READ, Verb.LIST, Verb.STAT, Verb.POLL}),
        (["LIST"], {Verb.LIST, Verb.STAT}),
        (["READ_METADATA"], {Verb.STAT}),
        (["UPLOAD"], {Verb.CREATE, Verb.STAT, Verb.POLL}),
        (["UPLOAD", "DELETE", "MANAGE"], {Verb.CREATE, Verb.MODIFY, Verb.STAT, Verb.POLL}),
        (["DELETE"], set()),
        (["MANAGE", "UPDATE_METADATA"], set()),
        (["STAGE"], set()),
    ],
    ids=str,
)
def test_activities_open_what_they_name_and_nothing_else(activities, verbs):
    gate = Gate({ISSUER: ["/"]}, name="site")
    identity = judge(made(activities))
    assert {verb for verb in Verb if gate.may(identity, verb, "/a/x")} == verbs
    assert not any(gate.may(identity, verb, "/ab") for verb in Verb)


def test_a_macaroon_counts_at_its_endpoint_while_its_issuer_does():
    identity = judge(made())
    assert Gate({ISSUER: ["/area"]}, name="site").may(identity, Verb.READ, "/a/x")
    assert not Gate({ISSUER: ["/"]}, name="other").may(identity, Verb.READ, "/a/x")
    assert not Gate({ISSUER: ["/"]}).may(identity, Verb.READ, "/a/x")
    assert not Gate({"https://else.example.org": ["/"]}, name="site").may(identity, Verb.READ, "/a/x")


@pytest.mark.parametrize(
    ("caveat", "left"),
    [
        (b"activity:DOWNLOAD", {(Verb.READ, "/a")}),
        (b"activity:UPLOAD,DELETE", set()),
        (b"path:/site/a/b", {(Verb.READ, "/a/b"), (Verb.LIST, "/a/b")}),
        (b"path:/site", {(Verb.READ, "/a"), (Verb.LIST, "/a")}),
        (b"path:/", {(Verb.READ, "/a"), (Verb.LIST, "/a")}),
        (b"path:/site/a/", {(Verb.READ, "/a/"), (Verb.LIST, "/a/")}),
        (b"path:/site//a/./c", {(Verb.READ, "/a/c"), (Verb.LIST, "/a/c")}),
        (b"name:alice", {(Verb.READ, "/a"), (Verb.LIST, "/a")}),
        (b"id:j1", {(Verb.READ, "/a"), (Verb.LIST, "/a")}),
        (b"before:2999-01-01T00:00:00.123Z", {(Verb.READ, "/a"), (Verb.LIST, "/a")}),
    ],
    ids=str,
)
def test_whoever_holds_one_can_narrow_it(caveat, left):
    identity = judge(with_caveats(made(), caveat))
    assert {(c.verb, c.path) for c in identity.capabilities} == left
    assert (identity.only, identity.expires) == ("site", HOUR)


@pytest.mark.parametrize(
    "caveat",
    [
        b"path:/other", b"path:/sit", b"path:/site/b", b"path:/site/ab", b"path:a",
        b"path:", b"path:/site/a/..",
        b"path:/site/../site/a", b"path:/site/a\n", b"path:/site/a\x00", b"before:2020-01-01T00:00:00Z",
        b"before:2999-01-01", b"before:2999-13-01T00:00:00Z", b"before:", b"before:9999999999",
        b"activity:", b"activity:ALL", b"activity:download", b"activity:DOWNLOAD ,LIST", b"name:bob",
        b"id:j2",
        b"ip:10.0.0.1", b"root:/site", b"", b":", b"\xff", b"x" * 2000, b"activity", "name:alicé".encode(),
    ],
    ids=repr,
)  # fmt: skip
def test_a_caveat_that_is_not_understood_or_leaves_nothing_takes_all(caveat):
    with pytest.raises(InvalidToken) as caught:
        judge(with_caveats(made(), caveat))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_it_ends_when_it_says():
    assert judge(made(), HOUR - 1)
    with pytest.raises(InvalidToken, match="expired"):
        judge(made(), HOUR)
    soon = with_caveats(made(), b"before:2027-01-15T08:00:30Z")  # NOW is 08:00:00
    assert judge(soon, NOW + 29).expires == NOW + 30
    with pytest.raises(InvalidToken, match="expired"):
        judge(soon, NOW + 30)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: raw(m.location.encode(), m.identifier, m.caveats[:-1], m.signature),
        lambda m: raw(m.location.encode(), m.identifier, m.caveats[::-1], m.signature),
        lambda m: raw(m.location.encode(), m.identifier.replace(b"alice", b"admin"), m.caveats, m.signature),
        lambda m: raw(m.location.encode(), m.identifier, (b"activity:UPLOAD", *m.caveats[1:]), m.signature),
        lambda m: raw(m.location.encode(), m.identifier, m.caveats, m.signature[:-1]),
        lambda m: raw(m.location.encode(), m.identifier, m.caveats, b""),
        lambda m: raw(m.location.encode(), m.identifier, m.caveats, m.signature, name=b"vid"),
        lambda m: raw(m.location.encode(), m.identifier, (), m.signature),
        lambda m: serialised(m.location, m.identifier, m.caveats, OTHER),
        lambda m: raw(m.location.encode(), m.identifier, m.caveats + (b"id:j1",) * MAX_CAVEATS, m.signature),
    ],
    ids=map(str, range(10)),
)  # fmt: skip
def test_what_is_changed_is_refused(spoil):
    with pytest.raises(InvalidToken):
        judge(spoil(parsed(made())))


def test_one_without_endpoint_end_or_path_would_count_everywhere_and_is_refused():
    facts = parsed(made()).identifier
    for caveats in (
        [b"activity:DOWNLOAD", b"path:/", b"before:2999-01-01T00:00:00Z"],
        [b"activity:DOWNLOAD", b"path:/site"],
        [b"activity:DOWNLOAD", b"before:2999-01-01T00:00:00Z"],
    ):
        with pytest.raises(InvalidToken, match="no path below an endpoint"):
            judge(serialised("se", facts, caveats, KEY))
    with pytest.raises(BadRequest, match="no path"):
        made(path="/")


@pytest.mark.parametrize(
    "caveats", [["ip:1"], ["path:/else"], ["x" * 9000], ["id:j1"] * 70, ["name:b\ud800"]]
)
def test_a_request_that_could_never_be_used_is_refused(caveats):
    with pytest.raises(BadRequest):
        made(caveats=caveats)


def test_location_is_for_people_and_protects_nothing():
    found = parsed(made())
    assert judge(raw(b"elsewhere", found.identifier, found.caveats, found.signature))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_macaroon_or_one_clear_refusal(data):
    text = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    with pytest.raises(InvalidToken):
        judge(text)


@given(st.text(max_size=200))
def test_any_text_is_refused_clearly(text):
    with pytest.raises(InvalidToken):
        judge(text)


@given(st.data())
def test_packets_with_any_content_come_back_as_they_went_in(data):
    part = st.binary(max_size=60)
    identifier, caveats = data.draw(part), data.draw(st.lists(part, min_size=1, max_size=5))
    found = parsed(serialised("se", identifier, caveats, KEY))
    assert found == Macaroon("se", identifier, tuple(caveats), found.signature)
    assert found.signed_by(KEY)
    assert not found.signed_by(OTHER)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_no_flipped_bit_goes_unnoticed(place, flip):
    data = bytearray(base64.urlsafe_b64decode(made() + "=="))
    start = data.index(b"identifier")  # the location is not signed
    place = start + place % (len(data) - start)
    data[place] ^= flip
    text = base64.urlsafe_b64encode(bytes(data)).rstrip(b"=").decode()
    with pytest.raises(InvalidToken):
        judge(text)


@given(
    st.lists(
        st.sampled_from([b"activity:", b"path:", b"before:"]).flatmap(
            lambda name: {
                b"activity:": st.lists(st.sampled_from(sorted(ACTIVITIES)), min_size=1).map(",".join),
                b"path:": st.sampled_from(
                    ["/site", "/site/a", "/site/a/b", "/site/a/b/", "/site/c", "/other"]
                ),
                b"before:": st.sampled_from(["2999-01-01T00:00:00Z", "2027-01-15T08:30:00Z"]),
            }[name].map(lambda value: name + value.encode())
        ),
        max_size=4,
    )
)
def test_no_caveats_ever_give_more_than_there_was(caveats):
    gate = Gate({ISSUER: ["/"]}, name="site")
    whole = judge(made())
    try:
        narrow = judge(with_caveats(made(), *caveats))
    except InvalidToken:
        return
    assert narrow.expires <= whole.expires
    assert narrow.only == whole.only
    for verb in Verb:
        for path in ("/", "/a", "/a/b", "/a/b/c", "/ab", "/c"):
            assert not gate.may(narrow, verb, path) or gate.may(whole, verb, path)


def test_secrets_rotate_and_the_one_before_still_verifies(tmp_path):
    keys = Secrets(tmp_path / "macaroon.key")
    other = Secrets(tmp_path / "macaroon.key")  # another process
    assert keys() == other()
    first = Macaroons("se", keys, 60).issue(ALICE, "/site/a", ["LIST"], HOUR)
    other.rotate()
    check = Macaroons("se", keys, 60)
    assert check.verify(first, NOW)
    assert keys() == other()
    assert len(keys()) == 2
    second = check.issue(ALICE, "/site/a", ["LIST"], HOUR)
    other.rotate()
    assert check.verify(second, NOW)
    with pytest.raises(InvalidToken):
        check.verify(first, NOW)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "macaroon.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="torn"):
        keys()


async def test_the_verifier_takes_one_only_where_a_gate_decides_and_knows_it_then():
    clock = lambda: NOW  # noqa: E731
    revoked = set()
    check = Verifier(
        [Issuer(issuer=ISSUER, vo="cms")], ["se"], local={ISSUER: {"keys": []}}, clock=clock, revoked=revoked,
        macaroons=Macaroons("se", lambda: [KEY], 60),
    )  # fmt: skip
    text = made()
    for _ in range(2):
        with pytest.raises(InvalidToken, match="opens files only"):
            await check.verify(text)
        assert (await check.verify(text, macaroons=True)).only == "site"
    assert check.known(text).only == "site"
    revoked.add("j1")
    check.drop({"j1"})
    with pytest.raises(InvalidToken, match="revoked"):  # with the token that it was made by
        await check.verify(text, macaroons=True)
    without = Verifier([Issuer(issuer=ISSUER)], ["se"], local={ISSUER: {"keys": []}}, clock=clock)
    with pytest.raises(InvalidToken, match="not a JWT"):
        await without.verify(text, macaroons=True)


def test_no_secret_stands_in_a_macaroon():
    found = parsed(made())
    assert KEY not in found.identifier
    assert json.loads(found.identifier) == {"i": ISSUER, "s": "alice", "v": "cms", "c": "web", "j": "j1"}

"""Signatures against botocore's own signers, and access keys."""

import asyncio
import time
import uuid
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Theirs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from doma.auth.gate import Gate
from doma.auth.model import Capability, Identity, Verb
from doma.auth.revoked import Revocations, mark_of
from doma.core.errors import BadRequest, Forbidden
from doma.doors.s3_keys import LONGEST, Keys, Right, identity_of, within
from doma.doors.s3_sign import claimed, parsed
from doma.store.s3_signature import EMPTY, Asked, Credentials, presigned, signed

ID, SECRET, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "a+session/token=="
NOW = time.time()
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + quote("/".join(parts), safe="/-_.~"))
queries = st.dictionaries(st.text("abcXYZ-", min_size=1, max_size=8), names, max_size=3)


def asked_of(request):
    """A botocore request as it goes over the wire."""
    url = urlsplit(request.url)
    headers = {name.lower(): str(value) for name, value in request.headers.items()}
    headers.setdefault("host", url.netloc)
    return Asked(request.method, url.path, parsed(url.query), headers)


def theirs(token=True):
    return Theirs(ID, SECRET, TOKEN if token else None)


def url_of(path, query):
    tail = "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in query.items())
    return f"https://se.example:8443{path}" + (f"?{tail}" if tail else "")


@settings(max_examples=60, deadline=None)
@given(paths, queries, st.binary(max_size=50), st.booleans(), st.sampled_from(["GET", "PUT", "DELETE"]))
@example("/b/a%20b%2B%25/%C3%BC", {"prefix": "a b+&=/"}, b"", True, "GET")
def test_header_signatures_of_botocore_are_right_and_of_nobody_else(path, query, body, token, method):
    request = AWSRequest(method, url_of(path, query), data=body, headers={"x-amz-meta-a": "  two   blanks "})
    S3SigV4Auth(theirs(token), "s3", "eu-west-7").add_auth(request)
    found = claimed(asked_of(request))
    assert (found.access_key, found.token) == (ID, TOKEN if token else "")
    found.check(SECRET, time.time())
    with pytest.raises(Forbidden) as error:
        found.check(SECRET + "x", time.time())
    assert error.value.detail["s3"] == "SignatureDoesNotMatch"


@settings(max_examples=60, deadline=None)
@given(paths, queries, st.booleans(), st.integers(60, 604_800))
def test_query_signatures_of_botocore_are_right_until_they_end(path, query, token, life):
    request = AWSRequest("GET", url_of(path, query))
    S3SigV4QueryAuth(theirs(token), "s3", "us-east-1", expires=life).add_auth(request)
    found = claimed(asked_of(request))
    assert found.token == (TOKEN if token else "")
    now = time.time()
    found.check(SECRET, now)
    found.check(SECRET, now + life - 30)
    with pytest.raises(Forbidden, match="expired"):
        found.check(SECRET, now + life + 2)


@settings(max_examples=40, deadline=None)
@given(paths, st.booleans(), st.sampled_from(["", "uploads", "response-content-type=text%2Fplain"]))
def test_old_query_signatures_of_botocore_are_right(path, token, query):
    request = AWSRequest("GET", f"https://se.example{path}" + (f"?{query}" if query else ""))
    HmacV1QueryAuth(theirs(token), expires=100).add_auth(request)
    url = urlsplit(request.url)
    found = claimed(Asked("GET", url.path, parsed(url.query), {"host": "se.example"}))
    found.check(SECRET, time.time())
    with pytest.raises(Forbidden):
        found.check(SECRET, time.time() + 200)
    with pytest.raises(Forbidden):
        claimed(Asked("HEAD", url.path, parsed(url.query), {})).check(SECRET, time.time())


def test_an_old_signed_address_may_be_written_by_a_reader_that_encodes_less():
    request = AWSRequest("GET", "https://se.example/b/https%3A%3A%3Ah%3Aa%2Bb.root")
    HmacV1QueryAuth(theirs(False), expires=100).add_auth(request)
    query = parsed(urlsplit(request.url).query)
    for path in ("/b/https%3A%3A%3Ah%3Aa%2Bb.root", "/b/https:::h:a+b.root", "/b/https:::h:a%2Bb.root"):
        claimed(Asked("GET", path, query, {})).check(SECRET, time.time())
    with pytest.raises(Forbidden):
        claimed(Asked("GET", "/b/https:::h:a.root", query, {})).check(SECRET, time.time())


@settings(max_examples=60, deadline=None)
@given(paths, queries, st.booleans())
def test_what_we_sign_is_what_botocore_signs(path, query, token):
    moment = datetime.fromtimestamp(NOW, UTC).strftime("%Y%m%dT%H%M%SZ")
    who = Credentials(ID, SECRET, TOKEN if token else "")
    ours = signed(Asked("PUT", path, list(query.items()), {"host": "se.example:8443"}), EMPTY, who, now=NOW)
    request = AWSRequest("PUT", url_of(path, query))
    request.context["timestamp"] = moment
    signer = S3SigV4Auth(theirs(token), "s3", "us-east-1")
    signer._modify_request_before_signing(request)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert ours["authorization"].endswith("Signature=" + signer.signature(text, request))


@given(paths)
def test_a_url_that_we_sign_is_right(path):
    who = Credentials(ID, SECRET, TOKEN)
    url = urlsplit(presigned("GET", f"https://se.example{path}", who, now=NOW, life=60))
    found = claimed(Asked("GET", url.path, parsed(url.query), {"host": "se.example"}))
    found.check(SECRET, NOW)
    assert dict(parse_qsl(url.query))["X-Amz-Security-Token"] == TOKEN == found.token


@given(
    st.text(max_size=200),
    st.dictionaries(st.sampled_from(["authorization", "x-amz-date", "host"]), st.text()),
)
@example("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a/20260230/r/s3/aws4_request", {})
@example(
    "", {"authorization": "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host, Signature=ü"}
)
def test_nonsense_is_one_clear_error_or_none(query, headers):
    try:
        found = claimed(Asked("GET", "/a/%ff", parsed(query), headers))
        if found is not None:
            found.check(SECRET, NOW)
    except (BadRequest, Forbidden):
        return


# --- keys ---

ISSUER = "https://issuer.example/doma"
keys = Keys(b"m" * 32, [ISSUER, "https://other.example"])


def right(**more):
    how = {"endpoint": "site", "prefix": "/a/b", "verbs": (Verb.READ,), "issuer": ISSUER, "subject": "ada"}
    return Right(**(how | {"expires": 2_000_000_000.0} | more))


@given(
    st.lists(
        names.filter(lambda n: n not in {".", ".."} and not n.startswith(".doma") and "/" not in n),
        max_size=6,
    ),
    st.sets(st.sampled_from([Verb.READ, Verb.CREATE, Verb.MODIFY, Verb.STAGE]), min_size=1),
    names,
    st.booleans(),
    st.sampled_from(["", "a token's jti"]),
)
def test_a_key_says_what_it_was_made_for(parts, verbs, subject, session, jti):
    order = tuple(v for v in (Verb.READ, Verb.CREATE, Verb.MODIFY, Verb.STAGE) if v in verbs)
    asked = right(prefix="/" + "/".join(parts), verbs=order, subject=subject, token=mark_of(jti))
    key = keys.issue(asked, session=session)
    assert keys.right(key.access_key, key.session_token) == asked
    assert Keys(b"m" * 32, [ISSUER]).right(key.access_key, key.session_token) == asked
    assert not session or len(key.access_key) <= LONGEST
    assert key.access_key.replace("-", "").replace("_", "").isalnum()
    assert key.secret_key == keys.secret(key.access_key)
    assert key.secret_key != Keys(b"n" * 32, [ISSUER]).secret(key.access_key)


def test_a_key_ends_with_the_token_that_it_was_got_with_and_others_stay():
    revocations = Revocations(Voided(), lambda: 1e9)
    held = Keys(b"m" * 32, [ISSUER], revocations.marks)
    mine, others, none = (held.issue(right(token=mark_of(jti))) for jti in ("mine", "others", ""))
    for key in (mine, others, none):
        held.must_last(held.right(key.access_key), 1e9)
    asyncio.run(revocations.look())
    with pytest.raises(Forbidden, match="revoked"):
        held.must_last(held.right(mine.access_key), 1e9)
    for key in (others, none):
        held.must_last(held.right(key.access_key), 1e9)
    with pytest.raises(Forbidden, match="expired"):
        held.must_last(held.right(others.access_key), 2e9)


class Voided:
    """Tables in which one token is void."""

    def revoked_since(self, at, now):
        return {"mine": now + 60}

    def prune(self, now):
        pass


def test_the_key_of_a_delivery_request_needs_no_session_token():
    key = keys.issue(
        right(
            endpoint="results",
            prefix=f"/{uuid.uuid4()}",
            subject="x" * 36,
        )
    )
    assert key.session_token == ""
    assert len(key.access_key) <= LONGEST


def test_a_changed_key_is_another_key_or_none():
    key = keys.issue(right(prefix="/" + "long/" * 40))
    assert key.session_token
    for access, token in (
        (key.access_key, ""), (key.access_key, key.session_token[:-2] + "AA"),
        (key.access_key[:-1] + "_", key.session_token),
        ("", ""), ("AKIA", ""), ("DK", ""), ("DK" + "A" * 60, ""), ("DKü", ""), ("DS", ""),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            Keys(b"m" * 32, [ISSUER]).right(access, token)
    with pytest.raises(Forbidden):  # its issuer is trusted no more
        Keys(b"m" * 32, ["https://other.example"]).right(keys.issue(right()).access_key)
    for wrong in (
        {"verbs": ()},
        {"verbs": (Verb.STAT,)},
        {"subject": "a\0b"},
        {"expires": -1.0},
        {"expires": 1e12},
    ):
        with pytest.raises(BadRequest):
            keys.issue(right(**wrong))


@pytest.mark.parametrize(
    ("prefix", "verbs", "verb", "path", "is_dir", "fine"),
    [
        ("/a/b", "read", "read", "/a/b", False, True),
        ("/a/b", "read", "read", "/a/b/c", False, True),
        ("/a/b", "read", "read", "/a/bc", False, False),
        ("/a/b", "read", "read", "/a", True, False),
        ("/a/b", "read", "stat", "/a", True, True),
        ("/a/b", "read", "stat", "/x", True, False),
        ("/a/b/", "read", "read", "/a/b", False, False),
        ("/a/b/", "read", "read", "/a/b", True, True),
        ("/a/b/", "read", "read", "/a/b/c", False, True),
        ("/", "read", "read", "/anything", False, True),
        ("/", "read", "modify", "/anything", False, False),
        ("/", "create", "modify", "/anything", False, False),
        ("/", "modify", "create", "/anything", False, True),
    ],
)
def test_a_right_covers_by_component_and_verb(prefix, verbs, verb, path, is_dir, fine):
    assert right(prefix=prefix, verbs=(Verb(verbs),)).covers(Verb(verb), path, is_dir=is_dir) is fine


def test_nobody_hands_on_more_than_he_has():
    gate = Gate({ISSUER: ["/vo"]})
    who = Identity(
        ISSUER, "ada", 2e9, capabilities=(Capability(Verb.READ, "/x/"), Capability(Verb.CREATE, "/x/new"))
    )
    within(gate, who, right(prefix="/vo/x/", verbs=(Verb.READ,)))
    within(gate, who, right(prefix="/vo/x/new", verbs=(Verb.READ, Verb.CREATE)))
    for prefix, verb in (
        ("/vo/x", Verb.READ), ("/vo", Verb.READ), ("/x", Verb.READ),
        ("/vo/x/new", Verb.MODIFY), ("/", Verb.READ),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            within(gate, who, right(prefix=prefix, verbs=(verb,)))


def test_whoever_acts_with_a_key_has_that_right_in_its_issuers_area_only():
    areas = ("/vo", "/vo/lab", "/other")
    gate = Gate({ISSUER: areas})
    who = identity_of(right(prefix="/vo/lab/x"), areas)
    assert gate.may(who, Verb.READ, "/vo/lab/x/y")
    assert not gate.may(who, Verb.READ, "/vo/lab/y")
    assert identity_of(right(prefix="/elsewhere"), areas) is None
    assert identity_of(right(prefix="/"), areas) is None

"""Signatures of both versions mixed, and steering parameters in the place where nobody looks for them."""

import base64
import hmac
import time
import urllib.parse
import uuid

import pytest

from doma.store.s3_signature import Credentials, presigned


def old(pair, method, path, lines=(), life=600, **query):
    """A query signature of version 2, over what it signs: ``x-amz-`` lines and the path."""
    expires = str(int(time.time()) + life)
    said = "".join(f"{line}\n" for line in lines)
    text = f"{method}\n\n\n{expires}\n{said}{path}"
    signature = base64.b64encode(hmac.digest(pair.secret.encode(), text.encode(), "sha1")).decode()
    return {"AWSAccessKeyId": pair.access, "Expires": expires, "Signature": signature, **query}


@pytest.fixture(scope="module")
def ask(shared):
    """Sends a request without a token; status, S3's code, content."""

    def send(method, path, query=None, headers=None, content=None):
        target = path + ("?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote) if query else "")
        answer = shared.ask(method, target, None, headers, content=content)
        code = answer.text.partition("<Code>")[2].partition("</Code>")[0]
        return answer.status_code, code, answer.content

    return send


@pytest.fixture
def place(shared):
    """A folder with an open and a secret file, both readable by the key that signs."""
    top = f"/site/s3a/{uuid.uuid4().hex}"
    shared.put(f"{top}/open", b"open")
    shared.put(f"{top}/secret", b"secret")
    return top


def test_a_copy_that_was_signed_cannot_be_made_a_copy_of_something_else(ask, key, place):
    pair = key()
    source, target = f"{place}/open", f"{place}/target"
    query = old(pair, "PUT", target, [f"x-amz-copy-source:{source}"], **{"x-amz-copy-source": source})
    status, code, _ = ask("PUT", target, query, {"x-amz-copy-source": f"{place}/secret"})
    assert (status, code) == (400, "InvalidRequest")
    assert ask("GET", target, old(pair, "GET", target))[1] == "NoSuchKey"
    assert ask("PUT", target, query)[0] == 200
    assert ask("GET", target, old(pair, "GET", target))[2] == b"open"


def test_a_copy_in_the_query_of_a_new_signature_is_a_copy_and_needs_it_signed(ask, shared, key, place):
    pair = key()
    who = Credentials(pair.access, pair.secret, pair.token)
    url = presigned("PUT", shared.run["https"] + f"{place}/target", who, now=time.time(), life=60)
    path, query = url.removeprefix(shared.run["https"]).split("?")
    more = dict(urllib.parse.parse_qsl(query))
    assert ask("PUT", path, more | {"x-amz-copy-source": f"{place}/secret"})[1] == "SignatureDoesNotMatch"
    assert ask("PUT", path, more, {"x-amz-copy-source": f"{place}/secret"})[1] == "AccessDenied"
    assert ask("GET", path, old(pair, "GET", path))[1] == "NoSuchKey"


@pytest.mark.parametrize(
    "change",
    [
        lambda q: q | {"X-Amz-Algorithm": "AWS4-HMAC-SHA256"},
        lambda q: q | {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": q["AWSAccessKeyId"]},
        lambda q: q | {"Expires": str(int(q["Expires"]) + 1)},
        lambda q: q | {"uploadId": "0" * 32},
        lambda q: q | {"response-content-type": "text/html"},
        lambda q: q | {"x-amz-copy-source": "/site/x"},
        lambda q: q | {"Signature": ""},
        lambda q: q | {"Signature": "é"},
        lambda q: q | {"Expires": "9" * 40},
        lambda q: q | {"AWSAccessKeyId": "DK" + "A" * 5000},
    ],
    ids=["v4", "half v4", "longer", "upload", "type", "copy", "none", "letter", "for ever", "long key"],
)
def test_an_old_signature_is_good_for_what_it_signed_alone(ask, key, place, change):
    path = f"{place}/secret"
    query = old(key(), "GET", path)
    assert ask("GET", path, query)[2] == b"secret"
    status, code, content = ask("GET", path, change(query))
    assert status in {400, 403}, (code, content)
    assert content != b"secret"


def test_an_old_signature_of_another_method_or_path_is_refused(ask, shared, key, place):
    pair, path = key(), f"{place}/secret"
    for method, other in (("DELETE", path), ("PUT", path), ("GET", f"{place}/open"), ("GET", path + "/")):
        status, code, _ = ask(method, other, old(pair, "GET", path))
        assert (status, code) == (403, "SignatureDoesNotMatch")
    for other in (path.replace("/s3a", "//s3a"), path.replace("/s3a", "/./s3a"), "/site/../" + path[1:]):
        raw = other + "?" + urllib.parse.urlencode(old(pair, "GET", path))
        assert shared.raw("GET", raw)[0] in {400, 403}, other


def test_a_header_and_a_query_signature_do_not_add_up(ask, shared, key, place):
    """The header is what counts, and it signs the whole query; a token beside it gives nothing more."""
    pair, path = key(f"{place[5:]}/open", ("read",)), f"{place}/secret"
    wide = old(key(), "GET", path)
    scope = f"{pair.access}/20260101/us-east-1/s3/aws4_request"
    header = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope},SignedHeaders=host,Signature=00",
        "x-amz-date": "20260101T000000Z",
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
    }
    assert ask("GET", path, wide, header)[:2] == (403, "SignatureDoesNotMatch")
    narrow = old(pair, "GET", path)
    assert ask("GET", path, narrow)[:2] == (403, "AccessDenied")
    assert ask("GET", path, narrow, {"Authorization": f"Bearer {shared.token()}"})[0] == 403


def test_names_of_neighbours_do_not_leak(ask, key, place, shared):
    shared.put(f"{place}/ab/neighbour", b"hidden")
    shared.put(f"{place}/a/own", b"mine")
    pair = key(f"{place[5:]}/a/", ("read",))
    inside = place.removeprefix("/site/")
    for prefix in (
        "",
        inside,
        f"{inside}/",
        f"{inside}/a",
        f"{inside}/ab/",
        f"{inside}/ab",
        f"{inside}/a/../ab/",
    ):
        query = old(pair, "GET", "/site", **{"list-type": "2", "prefix": prefix, "delimiter": "/"})
        status, _, content = ask("GET", "/site", query)
        assert status in {400, 403}, (prefix, content)
        assert b"neighbour" not in content
    good = old(pair, "GET", "/site", **{"list-type": "2", "prefix": f"{inside}/a/"})
    assert b"/a/own" in ask("GET", "/site", good)[2]
    for after in (f"{inside}/ab/", "zzz"):
        content = ask("GET", "/site", good | {"start-after": after})[2]
        assert b"neighbour" not in content


@pytest.mark.parametrize(
    "name", ["/site/s3a/x", "site", "", "/", "?versionId=null", "%ff", "/site/%2e%2e/x", "site/"]
)
def test_a_copy_of_a_nonsense_source_is_one_clear_error(ask, key, place, name):
    pair, target = key(), f"{place}/target"
    query = old(pair, "PUT", target, [f"x-amz-copy-source:{name}"], **{"x-amz-copy-source": name})
    status, code, _ = ask("PUT", target, query)
    assert 400 <= status < 500, code

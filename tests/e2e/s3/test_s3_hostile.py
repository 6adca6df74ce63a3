"""What must not pass the s3 door, byte for byte as an attacker would send it."""

import base64
import datetime
import hashlib
import http.client
import time
import urllib.parse
import uuid

import crc32c
import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


class Wire:
    """Requests signed by botocore's signer for one key pair, then sent as they are told."""

    def __init__(self, pair, url):
        self.credentials, self.url = Credentials(pair.access, pair.secret, pair.token or None), url

    def headers(self, method, path, body=b"", extra=None, clock=None, **state):
        """The headers of a signed request."""
        request = AWSRequest(method, self.url + path, headers=dict(extra or {}), data=body)
        signer = S3SigV4Auth(self.credentials, "s3", "us-east-1")
        if clock is not None:
            moment = datetime.datetime.fromtimestamp(time.time() + clock, datetime.UTC)
            signer_time(signer, request, moment)
        else:
            signer.add_auth(request)
        return dict(request.headers.items())

    def send(self, method, path, headers, body=b""):
        """Status, S3's code, and the body."""
        place = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() != "host":
                    connection.putheader(name, value)
            if "content-length" not in {name.lower() for name in headers}:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            text = answer.read()
            code = text.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()
            return answer.status, code, text
        finally:
            connection.close()

    def ask(self, method, path, body=b"", extra=None, **how):
        """Sign and send."""
        return self.send(method, path, self.headers(method, path, body, extra, **how), body)


def signer_time(signer, request, moment):
    """What ``add_auth`` does, at another moment."""
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    request.context["timestamp"] = stamp
    signer._modify_request_before_signing(request)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    signer._inject_signature_to_request(request, signer.signature(text, request))


@pytest.fixture(scope="module")
def wire(shared, key):
    return Wire(key(), shared.run["url"])


def fresh():
    return f"/site/s3h/{uuid.uuid4().hex}"


def test_a_good_request_passes_so_that_the_others_fail_for_their_own_reason(wire):
    path = fresh()
    assert wire.ask("PUT", path, b"good")[0] == 200
    assert wire.ask("GET", path)[2] == b"good"


def test_a_wrong_secret_is_refused(shared, key):
    pair = key()
    other = Wire(type(pair)(pair.access, pair.secret[::-1], "", pair.url), shared.run["url"])
    assert other.ask("GET", "/site/x")[:2] == (403, "SignatureDoesNotMatch")
    unknown = Wire(type(pair)("AKIAIOSFODNN7EXAMPLE", pair.secret, "", pair.url), shared.run["url"])
    assert unknown.ask("GET", "/site/x")[:2] == (403, "InvalidAccessKeyId")


@pytest.mark.parametrize(
    "change",
    [
        lambda m, p, h: ("DELETE", p, h),
        lambda m, p, h: (m, p + "2", h),
        lambda m, p, h: (m, p + "?uploads", h),
        lambda m, p, h: (m, p, h | {"X-Amz-Date": "20200101T000000Z"}),
        lambda m, p, h: (m, p, h | {"x-amz-content-sha256": hashlib.sha256(b"other").hexdigest()}),
        lambda m, p, h: (m, p, h | {"x-amz-meta-a": "2"}),
        lambda m, p, h: (m, p, h | {"Authorization": h["Authorization"].replace("us-east-1", "us-east-2")}),
        lambda m, p, h: (m, p, h | {"Authorization": h["Authorization"].replace(";x-amz-meta-a", "")}),
    ],
    ids=["method", "path", "query", "date", "hash", "header", "region", "signed headers"],
)
def test_a_changed_request_is_refused(wire, change):
    path = fresh()
    headers = wire.headers("PUT", path, b"data", {"x-amz-meta-a": "1"})
    method, path, headers = change("PUT", path, headers)
    status, code, _ = wire.send(method, path, headers, b"data")
    assert status in {400, 403}
    assert code in {"SignatureDoesNotMatch", "InvalidRequest", "AccessDenied"}


def test_a_header_that_steers_must_be_signed(wire):
    target, source = fresh(), fresh()
    assert wire.ask("PUT", source, b"source")[0] == 200
    headers = wire.headers("PUT", target) | {"x-amz-copy-source": source}
    assert wire.send("PUT", target, headers)[:2] == (403, "AccessDenied")
    assert wire.ask("GET", target)[1] == "NoSuchKey"


@pytest.mark.parametrize(("clock", "fine"), [(-880, True), (880, True), (-920, False), (920, False)])
def test_clocks_may_differ_by_a_quarter_of_an_hour(wire, clock, fine):
    status, code, _ = wire.ask("GET", "/site/", clock=clock)
    assert (status, code) == ((200, "") if fine else (403, "RequestTimeTooSkewed"))


@pytest.mark.parametrize("life", [1, 7 * 24 * 3600, 7 * 24 * 3600 + 1, 0])
def test_presigned_urls_end(wire, life):
    request = AWSRequest("GET", wire.url + "/site/")
    S3SigV4QueryAuth(wire.credentials, "s3", "us-east-1", expires=life).add_auth(request)
    path = request.url.removeprefix(wire.url)
    if 0 < life <= 7 * 24 * 3600:
        assert wire.send("GET", path, {})[0] == 200
        stamp = urllib.parse.parse_qs(path.partition("?")[2])["X-Amz-Date"][0]
        assert wire.send("GET", path.replace(stamp, "20200101" + stamp[8:]), {})[0] in {400, 403}
    else:
        assert wire.send("GET", path, {})[:2] == (400, "AuthorizationQueryParametersError")


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "a/../../b", "%2e%2e/b", "a/%2e%2e/b", "..%2fb", "/abs", "a//b", "./a", "a/./b", "%2Fa",
        ".doma/new/x", "a/.doma", "a%00b", "a%0ab", "%ff%fe", "x" * 300, "a/" * 2500,
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_keys_lead_nowhere_else(wire, name, method):
    headers = wire.headers(method, "/site/s3h/" + name)
    status, code, body = wire.send(method, "/site/s3h/" + name, headers)
    # the signer normalises some paths itself: then the signature is what does not fit
    assert (status, code) in {
        (400, "InvalidArgument"), (400, "KeyTooLongError"), (403, "SignatureDoesNotMatch"), (414, ""),
        (400, ""), (431, ""),
    }, body  # fmt: skip


@pytest.mark.parametrize("name", ["../secret", "a/../../b", "/abs", "a//b", ".doma/new/x", "a\0b", "a\nb"])
def test_copy_sources_and_lists_of_keys_lead_nowhere_else(wire, name):
    source = {"x-amz-copy-source": "/site/" + urllib.parse.quote(name)}
    assert wire.ask("PUT", fresh(), b"", source)[:2] == (400, "InvalidArgument")
    if "\0" not in name:
        text = name.replace("\n", "&#10;")
        body = f"<Delete><Object><Key>{text}</Key></Object></Delete>".encode()
        status, _, answer = wire.ask("POST", "/site?delete", body)
        assert status == 200
        assert b"<Code>InvalidArgument</Code>" in answer


def test_xml_of_an_attacker_costs_nothing(wire):
    path = fresh()
    upload = wire.ask("POST", path + "?uploads")[2].partition(b"<UploadId>")[2].partition(b"<")[0].decode()
    complete = f"{path}?uploadId={upload}"
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><CompleteMultipartUpload>&a;</CompleteMultipartUpload>'
    part = "<Part><PartNumber>%d</PartNumber><ETag>x</ETag></Part>"
    many = "".join(part % n for n in range(1, 10_002)).encode()
    for body in (
        b"", b"<", b"<Other/>", b"<CompleteMultipartUpload/>", bomb, b"x" * (5 << 20),
        b"<CompleteMultipartUpload>" + many + b"</CompleteMultipartUpload>",
        b"<CompleteMultipartUpload>" + b"<a>" * 50_000,
        b"<CompleteMultipartUpload>" + (part % 0).encode() + b"</CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Part/></CompleteMultipartUpload>",
    ):  # fmt: skip
        assert wire.ask("POST", complete, body)[:2] == (400, "MalformedXML"), body[:60]
    keys = b"<Object><Key>a</Key></Object>" * 1001
    for body in (bomb, b"<Delete>" + keys + b"</Delete>", b"<Delete/>"):
        assert wire.ask("POST", "/site?delete", body)[:2] == (400, "MalformedXML")
    assert wire.ask("DELETE", complete)[0] == 204


def test_uploads_of_others_and_numbers_beyond_are_refused(wire):
    path = fresh()
    upload = wire.ask("POST", path + "?uploads")[2].partition(b"<UploadId>")[2].partition(b"<")[0].decode()
    for query, code in (
        ("partNumber=0", "InvalidArgument"),
        ("partNumber=10001", "InvalidArgument"),
        ("partNumber=x", "InvalidArgument"),
        ("partNumber=", "InvalidArgument"),
    ):
        assert wire.ask("PUT", f"{path}?{query}&uploadId={upload}", b"1")[:2] == (400, code)
    for where, name in ((path + "x", upload), (path, upload[:-1] + "g"), (path, "../../etc"), (path, "")):
        quoted = urllib.parse.quote(name, safe="")
        assert wire.ask("PUT", f"{where}?partNumber=1&uploadId={quoted}", b"1")[:2] == (404, "NoSuchUpload")


def test_what_is_not_offered_is_never_taken_for_something_else(wire):
    path = fresh()
    assert wire.ask("PUT", path, b"kept")[0] == 200
    for method, query in (
        ("DELETE", "tagging"), ("PUT", "acl"), ("PUT", "tagging"), ("GET", "acl"),
        ("DELETE", "versionId=abc"),
        ("GET", "versionId=abc"), ("PUT", "retention"),
    ):  # fmt: skip
        assert wire.ask(method, f"{path}?{query}", b"")[:2] == (501, "NotImplemented")
    assert wire.ask("PUT", f"{path}?renameObject", b"")[:2] == (501, "NotImplemented")
    for promised in (
        {"x-amz-server-side-encryption": "aws:kms"}, {"x-amz-write-offset-bytes": "4"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
        {"x-amz-object-lock-mode": "COMPLIANCE"}, {"x-amz-rename-source": path + "0"},
    ):  # fmt: skip
        assert wire.ask("PUT", path, b"more", promised)[:2] == (501, "NotImplemented")
        assert wire.ask("POST", path + "?uploads", b"", promised)[:2] == (501, "NotImplemented")
    assert wire.ask("POST", path)[:2] == (405, "MethodNotAllowed")
    assert wire.ask("GET", path)[2] == b"kept"


def test_content_that_is_not_what_was_signed_or_stated_is_never_published(wire, shared):
    path = fresh()
    headers = wire.headers("PUT", path, b"right")
    assert wire.send("PUT", path, headers, b"wrong")[:2] == (400, "XAmzContentSHA256Mismatch")
    for extra in (
        {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="},
        {"x-amz-checksum-crc32": "AAAAAA=="},
        {"x-amz-checksum-crc32c": "AAAAAA=="},
        {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="},
    ):
        assert wire.ask("PUT", path, b"right", extra)[:2] == (400, "BadDigest")
    assert wire.ask("PUT", path, b"right", {"x-amz-checksum-crc32": "zz"})[:2] == (400, "InvalidDigest")
    assert wire.ask("GET", path)[1] == "NoSuchKey"
    right = base64.b64encode(crc32c.crc32c(b"right").to_bytes(4, "big")).decode()
    assert wire.ask("PUT", path, b"right", {"x-amz-checksum-crc32c": right})[0] == 200
    head = shared.ask("HEAD", path, headers={"Want-Digest": "crc32c"})
    assert f"crc32c={right}" in head.headers["Digest"]


def test_a_key_never_allows_more_than_the_token_that_asked(shared, key):
    narrow = shared.token("storage.read:/s3h/mine storage.create:/s3h/mine/new")

    def asked(**more):
        return shared.ask("POST", "/api/v1/s3/keys", narrow, json={"endpoint": "site", **more})

    assert asked(prefix="/s3h/mine").status_code == 200
    assert asked(prefix="/s3h/mine/new", verbs=["create"]).status_code == 200
    for more, status in (
        ({"prefix": "/"}, 403), ({"prefix": "/s3h/mine2"}, 403), ({"prefix": "/s3h"}, 403),
        ({"prefix": "/s3h/mine", "verbs": ["modify"]}, 403),
        ({"prefix": "/s3h/mine", "verbs": ["create"]}, 403),
        ({"prefix": "/s3h/mine", "verbs": []}, 400), ({"prefix": "/s3h/mine", "verbs": ["all"]}, 400),
        ({"prefix": "/s3h/mine/../.."}, 400), ({"prefix": "s3h"}, 400),
        ({"prefix": "/s3h/mine", "lifetime": 0}, 400),
        ({"endpoint": "nowhere"}, 404), ({"prefix": "/s3h/mine", "more": 1}, 400),
    ):  # fmt: skip
        assert asked(**more).status_code == status, more
    soon = shared.token("storage.read:/", lifetime=30)
    got = shared.ask("POST", "/api/v1/s3/keys", soon, json={"endpoint": "site", "lifetime": 9999}).json()
    assert got["expires"] <= time.time() + 31
    assert shared.ask("POST", "/api/v1/s3/keys", None, json={"endpoint": "site"}).status_code == 401
    creating = Wire(key("/s3h/mine/new", ["create"], token=narrow), shared.run["url"])
    name = f"/site/s3h/mine/new/{uuid.uuid4().hex}"
    assert creating.ask("PUT", name, b"1")[0] == 200
    for method in ("PUT", "GET", "DELETE"):
        assert creating.ask(method, name, b"")[:2] == (403, "AccessDenied")
    assert creating.ask("GET", "/site?prefix=s3h%2Fmine%2Fnew%2F")[:2] == (403, "AccessDenied")
    assert creating.ask("GET", "/cache/x")[:2] == (403, "AccessDenied")


def test_sts_says_no_in_its_own_words(shared):
    def ask(**form):
        return shared.ask("POST", "/", None, data={"Action": "AssumeRoleWithWebIdentity", **form})

    role = "arn:aws:iam::000000000000:role/site/s3h"
    for form, status in (
        ({}, 400), ({"RoleArn": role}, 400), ({"RoleArn": role, "WebIdentityToken": "a.b.c"}, 403),
        ({"RoleArn": "x", "WebIdentityToken": shared.token()}, 400), ({"Action": "GetCallerIdentity"}, 400),
        ({"RoleArn": role, "WebIdentityToken": shared.token("storage.read:/other")}, 403),
        ({"RoleArn": role + "/../..", "WebIdentityToken": shared.token()}, 400),
    ):  # fmt: skip
        answer = ask(**form)
        assert answer.status_code == status, answer.text
        assert "<ErrorResponse" in answer.text
    assert shared.ask("POST", "/", None, content=b"x" * 70_000).status_code == 400

"""Requests that are recognised without a parser are those that a parser would have seen."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core.errors import BadPath, UriTooLong
from doma.core.paths import normalise
from doma.doors.fast_ask import _CANONICAL
from doma.net.exchange import Request
from doma.net.repeat import Frame

FIELDS = "Host: a\r\nAuthorization: Bearer x.y.z\r\nUser-Agent: u\r\n{}X: content-length: 3\r\n\r\n"


class Parsed:
    """What llhttp makes of bytes."""

    def __init__(self, raw):
        self.request = Request({}, tls=True, client=("", 0), server=("", 0))
        self.body, self.whole = b"", 0
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(raw)

    def on_url(self, part):
        self.request.target += part

    def on_header(self, name, value):
        self.request.headers.append((name.lower(), value))

    def on_headers_complete(self):
        self.request.fields = dict(self.request.headers)
        self.request.method = self._parser.get_method()
        self.request.length = int(self.request.fields.get(b"content-length", 0))

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.whole += 1


def put(target, body, fields=FIELDS, length=None):
    size = f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"PUT {target} HTTP/1.1\r\n{fields.format(size)}".encode("latin-1") + body


def learnt(raw):
    frame = Frame()
    for _ in range(2):
        frame.learn(memoryview(raw), Parsed(raw).request)
    return frame


@given(st.text(st.characters(max_codepoint=255), max_size=20), st.binary(max_size=40), st.binary(max_size=5))
def test_a_like_request_is_what_a_parser_sees(name, body, more):
    raw = put("/site/" + name, body) + more
    found = learnt(put("/site/a", b"first")).match(memoryview(raw))
    if found is None:
        return
    request, data = found
    seen = Parsed(raw)
    assert seen.whole == 1
    for key in ("method", "target", "headers", "fields", "length", "chunked", "keep_alive"):
        assert getattr(request, key) == getattr(seen.request, key)
    assert data == seen.body


def test_plain_ones_are_recognised_one_after_the_other():
    frame = learnt(put("/site/a", b"first"))
    for number in range(1, 30):
        raw = put(f"/site/{number}/x%20y", b"z" * number)
        request, body = frame.match(memoryview(raw))
        assert (request.target, body) == (f"/site/{number}/x%20y".encode(), b"z" * number)
        assert request.fields[b"content-length"] == dict(request.headers)[b"content-length"]
    gone = b"DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n"
    assert learnt(gone).match(memoryview(gone.replace(b"/a", b"/b")))[0].target == b"/b"


@pytest.mark.parametrize(
    "raw",
    [
        put("/site/b", b"12345").replace(b"x.y.z", b"x.y.w"),
        put("/site/b", b"12345")[:-1],
        put("/site/b", b"12345") + b"G",
        put("/site/b", b""),
        put("/site/b", b"12345", length="+5"),
        put("/site/b", b"12345", length="5 "),
        put("/site/b", b"12345", length="5\r\nDepth: 1"),
        put("/site/b", b"12345", length="0x5"),
        put("/site/b HTTP/1.1\r\nX-Upload-Id: a", b"12345"),
        put("/site/b\r\n", b"12345"),
        put("/site/b\t", b"12345"),
        put("/site/b?authz=x", b"12345"),
        put("http://other/site/b", b"12345"),
        put("*", b"12345"),
        put("/site/b", b"12345").replace(b"PUT", b"put"),
        put("/site/b", b"12345").replace(b"HTTP/1.1", b"HTTP/1.0"),
        put("/site/b", b"12345", FIELDS.replace("{}", "Expect: 100-continue\r\n{}")),
        b"",
        b"PUT /",
    ],
)
def test_anything_else_is_for_the_parser(raw):
    assert learnt(put("/site/a", b"first")).match(memoryview(raw)) is None


@pytest.mark.parametrize("field", ["Range: bytes=0-1", "Upgrade: h2c", "Host: b"])
def test_special_requests_are_not_learnt(field):
    raw = put("/site/a", b"first", FIELDS.replace("{}", field + "\r\n{}"))
    assert learnt(raw).match(memoryview(raw)) is None


def test_a_head_that_is_not_this_requests_is_not_learnt():
    """Bytes at hand may be another's: they must name the same method, target and length."""
    frame = Frame()
    for _ in range(2):
        frame.learn(memoryview(put("/site/b", b"1")), Parsed(put("/site/a", b"1")).request)
        frame.learn(memoryview(put("/site/a", b"22")), Parsed(put("/site/a", b"1")).request)
        frame.learn(memoryview(b""), Parsed(put("/site/a", b"1")).request)
    assert frame.match(memoryview(put("/site/a", b"1"))) is None
    assert frame.match(memoryview(put("/site/a", b"22"))) is None


@given(st.text("/.ab%20:@~é", max_size=30))
def test_paths_that_are_taken_as_they_are_need_no_change(path):
    if _CANONICAL.fullmatch(path.encode()):
        try:
            assert normalise(path) == path
        except (BadPath, UriTooLong) as e:  # pragma: no cover
            raise AssertionError(path) from e

"""The whole range table over real sockets: hot and cold files, plain and TLS."""

import re
from dataclasses import replace

import pytest

from doma.doors.fast import FastDoor

S = 300_000
ROWS = [
    ("R1", None, [(0, S)], 200),
    ("R2", "bytes=0-0", [(0, 1)], 206),
    ("R3", "bytes=1000-1999", [(1000, 2000)], 206),
    ("R4", f"bytes={S - 10}-{S + 500}", [(S - 10, S)], 206),
    ("R5", "bytes=299000-", [(299_000, S)], 206),
    ("R6", "bytes=-7", [(S - 7, S)], 206),
    ("R7", "bytes=-999999", [(0, S)], 206),
    ("R8", "bytes=-0", None, 416),
    ("R9", f"bytes={S}-", None, 416),
    ("R9", f"bytes={S}-{S + 9}", None, 416),
    ("R10", "bytes=9-5", [(0, S)], 200),
    ("R10", "bytes=x-y", [(0, S)], 200),
    ("R10", "bytes=", [(0, S)], 200),
    ("R10", "rows=0-5", [(0, S)], 200),
    ("R11", "bytes=0-9,100-199", [(0, 10), (100, 200)], 206),
    ("R11", "bytes=0-9, 100-199", [(0, 10), (100, 200)], 206),
    ("R12", f"bytes=0-9,{S}-", [(0, 10)], 206),
    ("R13", f"bytes={S}-,{S + 1}-", None, 416),
    ("R14", "bytes=0-0,-1", [(0, 1), (S - 1, S)], 206),
    ("R15", "bytes=50-99,0-59,50-99", [(50, 100), (0, 60), (50, 100)], 206),
    ("R16", "bytes=" + ",".join(f"{i}-{i}" for i in range(1024)), [(i, i + 1) for i in range(1024)], 206),
    ("R16", "bytes=" + "0-0," * 1025, None, 400),
    ("R17", "bytes=" + ",".join(["0-"] * 9), [(0, S)], 200),
]  # fmt: skip


def spans_of(got, size):
    """The (start, stop, bytes) that an answer claims to hold."""
    if got.status == 200:
        return [(0, size, got.body)]
    kind = got.headers["content-type"]
    if not kind.startswith("multipart/byteranges"):
        start, stop, whole = map(
            int, re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", got.headers["content-range"]).groups()
        )
        assert whole == size
        return [(start, stop + 1, got.body)]
    mark = b"--" + kind.partition("boundary=")[2].encode()
    found, at = [], 0
    while not got.body.startswith(mark + b"--", at):
        head_end = got.body.index(b"\r\n\r\n", at) + 4
        head = got.body[at:head_end].decode()
        assert head.startswith(mark.decode() + "\r\n")
        assert "Content-Type: application/octet-stream" in head
        start, stop, whole = map(int, re.search(r"Content-Range: bytes (\d+)-(\d+)/(\d+)", head).groups())
        assert whole == size
        body = got.body[head_end : head_end + stop + 1 - start]
        found.append((start, stop + 1, body))
        at = head_end + len(body)
        assert got.body[at : at + 2] == b"\r\n"
        at += 2
    assert got.body[at:] == mark + b"--\r\n"
    return found


@pytest.mark.parametrize("path", ["/site/f", "/site/cold"])
def test_every_row_of_the_range_table_is_answered_on_one_connection(wire, token, tools, path):
    for row, header, spans, status in ROWS:
        for _ in range(3):  # the first time by the application, then by the quick side, then without parser
            got = wire.ask("GET", path, {"Range": header} if header else {}, token=token)
            assert got.status == status, (row, header, got.body[:200])
            if spans is None:
                assert status == 400 or got.headers["content-range"] == f"bytes */{S}"
                continue
            expected = [(start, stop, tools.CONTENT[start:stop]) for start, stop in spans]
            assert spans_of(got, S) == expected, row
            assert got.headers["accept-ranges"] == "bytes"
            assert got.headers["etag"].startswith('"')
            assert "last-modified" in got.headers
            assert re.fullmatch(r"adler32=[0-9a-f]{8}", got.headers["digest"])
            assert got.headers["repr-digest"].startswith("adler=:")


@pytest.mark.parametrize("path", ["/site/big", "/site/coldbig"])
def test_large_answers_arrive_whole(wire, token, tools, path):
    size = len(tools.BIG)
    for header in (None, "bytes=5-2999990", "bytes=1-1500000,1400000-2999999", None):
        got = wire.ask("GET", path, {"Range": header} if header else {}, token=token)
        for start, stop, body in spans_of(got, size):
            assert body == tools.BIG[start:stop]


def test_an_empty_file_is_ordinary(wire, token):
    assert wire.ask("GET", "/site/empty", token=token).headers["content-length"] == "0"
    assert (
        wire.ask("GET", "/site/empty", {"Range": "bytes=0-"}, token=token).headers["content-range"]
        == "bytes */0"
    )
    assert wire.ask("GET", "/site/empty", {"Range": "bytes=-5"}, token=token).status == 200


@pytest.mark.parametrize("path", ["/site/f", "/site/cold"])
def test_conditions_are_honoured(wire, token, tools, path):
    first = wire.ask("GET", path, token=token)
    etag, date = first.headers["etag"], first.headers["last-modified"]
    span = {"Range": "bytes=0-9"}
    cases = [
        ({**span, "If-Range": etag}, 206),
        ({**span, "If-Range": date}, 206),
        ({**span, "If-Range": '"other"'}, 200),
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": date}, 304),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": etag}, 200),
        ({"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 412),
    ]
    for headers, status in cases:
        got = wire.ask("GET", path, headers, token=token)
        assert got.status == status, headers
        if status == 304:
            assert got.headers["etag"] == etag
        if status == 200:
            assert got.body == tools.CONTENT


def test_head_has_the_headers_of_get_and_ignores_range(wire, token):
    for headers in ({}, {"Range": "bytes=0-9"}):
        got = wire.ask("HEAD", "/site/f", headers, token=token)
        assert (got.status, got.headers["content-length"]) == (200, str(S))
        assert got.headers["digest"].startswith("adler32=")
    got = wire.ask("HEAD", "/site/f", {"Want-Digest": "md5"}, token=token)
    assert got.headers["digest"].startswith("md5=")
    assert wire.ask("HEAD", "/site/f", {"Want-Digest": "unheard-of"}, token=token).status == 200


def test_names_are_decoded_once(wire, token):
    assert wire.ask("PUT", "/site/n%20%2B%23%3F%C3%A9", body=b"x", token=token).status in {201, 204}
    assert wire.ask("GET", "/site//n%20+%23%3F%C3%A9", token=token).body == b"x"
    assert wire.ask("GET", "/site/x/../f", token=token).status == 400
    assert wire.ask("GET", "/site/" + "a" * 5000, token=token).status == 414


def test_rights_are_decided_at_every_request(wire, sign, token):
    narrow = sign("storage.read:/f")
    for _ in range(3):
        assert wire.ask("GET", "/site/f", token=narrow).status == 200
        assert wire.ask("GET", "/site/big", token=narrow).status == 403
        assert wire.ask("GET", "/site/missing", token=narrow).status == 403
        assert wire.ask("GET", "/site/f").status == 401
        assert wire.ask("GET", "/site/f", token=token[:-4] + "AAAA").status == 401
    assert wire.ask("GET", "/site/missing", token=token).status == 404
    assert wire.ask("GET", "/nowhere/f", token=token).status == 404
    got = wire.ask("GET", "/site/f?authz=Bearer%20" + token, {"Range": "bytes=0-0"})
    assert got.status == 206


@pytest.mark.parametrize("configured", [False, True])
def test_a_query_says_access_token_only_where_that_is_configured(
    site, launch, tools, token, sign, configured
):
    mine = replace(site, query_token=configured)
    with launch(tools.application(mine), FastDoor(mine)) as server, server.dial() as wire:
        for _ in range(2):
            assert wire.ask("GET", f"/site/f?access_token={token}").status == (200 if configured else 401)
        assert wire.ask("GET", f"/site/f?authz={token}").status == 200
        two = wire.ask("GET", f"/site/f?access_token={sign('storage.read:/f')}", token=token)
        assert two.status == (400 if configured else 200)


def test_an_expired_token_is_refused_on_the_connection_that_knew_it(plain, site, sign):
    token = sign()
    assert plain.ask("GET", "/site/f", token=token).status == 200
    assert plain.ask("GET", "/site/f", token=token).status == 200
    site.verifier.forget()
    assert plain.ask("GET", "/site/f", token=token).status == 200, "verified anew"

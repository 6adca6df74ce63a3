"""Bodies in ``aws-chunked``, whole and broken; checksums; the order of keys; XML."""

import base64
import hmac
import zlib
from hashlib import sha256

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.core.errors import BadRequest, ChecksumMismatch, WrongSize
from doma.doors.s3_body import Body
from doma.doors.s3_crc64 import Crc64
from doma.doors.s3_sign import Signed
from doma.doors.s3_walk import PATIENCE, WAITING, Walks, walk
from doma.doors.s3_xml import keys_of, parts_of, tag
from doma.store.memory import MemoryStore
from doma.store.s3_signature import EMPTY, Scope

SCOPE, SECRET, STAMP = Scope("20260101", "us-east-1", "s3"), "secret", "20260101T000000Z"


def chained(data, size, *, trailer=None, signed=True):
    """A chunked body as the standard says it."""
    previous, out, key = "seed", b"", SCOPE.key(SECRET)

    def sign(kind, tail):
        nonlocal previous
        text = f"AWS4-HMAC-SHA256-{kind}\n{STAMP}\n{SCOPE}\n{previous}\n{tail}"
        previous = hmac.digest(key, text.encode(), "sha256").hex()
        return previous

    for at in [*range(0, len(data), size), len(data)]:
        piece = data[at : at + size]
        mark = (
            f";chunk-signature={sign('PAYLOAD', EMPTY + chr(10) + sha256(piece).hexdigest())}"
            if signed
            else ""
        )
        out += f"{len(piece):x}{mark}\r\n".encode() + piece + (b"\r\n" if piece else b"")
    if trailer:
        out += trailer.encode() + b"\r\n"
        if signed:
            name, _, value = trailer.partition(":")
            digest = sha256(f"{name}:{value}\n".encode()).hexdigest()
            out += f"x-amz-trailer-signature:{sign('TRAILER', digest)}\r\n".encode()
    return out + b"\r\n"


def body_of(wire, payload, headers=None, step=1000):
    pieces = [wire[i : i + step] for i in range(0, len(wire), step)] or [b""]

    async def receive():
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    claim = Signed("id", "seed", "", payload, 0, 0, (), SCOPE, STAMP)
    return Body(headers or {}, receive, claim, SECRET, "/b/k")


def crc(data):
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


STREAM = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=5000), st.integers(1, 3000), st.integers(1, 4000), st.booleans(), st.booleans())
async def test_chunks_come_out_as_they_went_in_however_they_are_cut(data, size, step, signed, trailing):
    trailer = f"x-amz-checksum-crc32:{crc(data)}" if trailing or not signed else None
    payload = STREAM + "-TRAILER" * bool(trailer) if signed else "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    headers = {"x-amz-decoded-content-length": str(len(data))}
    if trailer:
        headers["x-amz-trailer"] = "x-amz-checksum-crc32"
    body = body_of(chained(data, size, trailer=trailer, signed=signed), payload, headers, step)
    assert b"".join([piece async for piece in body.pieces()]) == data
    assert not trailer or body.found["crc32"] == crc(data)


@settings(max_examples=80, deadline=None)
@given(st.data())
async def test_no_flipped_or_lost_byte_passes(data):
    content = b"some content, twice: some content"
    wire = chained(content, 10, trailer=f"x-amz-checksum-crc32:{crc(content)}")
    at = data.draw(st.integers(0, len(wire) - 3))
    way = data.draw(st.sampled_from(["flip", "lose", "add", "cut"]))
    broken = {
        "flip": wire[:at] + bytes([wire[at] ^ 1]) + wire[at + 1 :],
        "lose": wire[:at] + wire[at + 1 :],
        "add": wire[:at] + b"x" + wire[at:],
        "cut": wire[:at],
    }[way]
    headers = {"x-amz-decoded-content-length": str(len(content)), "x-amz-trailer": "x-amz-checksum-crc32"}
    got = b""
    try:
        async for piece in body_of(broken, STREAM + "-TRAILER", headers).pieces():
            got += piece
    except (BadRequest, ChecksumMismatch, WrongSize):
        return
    else:
        # what was changed was the last line end, white space, or the case of a hexadecimal digit
        assert got == content


@pytest.mark.parametrize(
    "wire",
    [
        b"", b"zz\r\n", b"-1\r\n", b"5\r\nabc", b"3\r\nabcdef\r\n0\r\n\r\n", b"ffffffffffff\r\n", b"1" * 5000,
        b"3\r\nabc\r\n", b"3\r\nabc\r\n0\r\nx-other:1\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
        b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:" + crc(b"abc").encode() + b"\r\n\r\nmore",
        b"4\r\nabcd\r\n0\r\nx-amz-checksum-crc32:" + crc(b"abcd").encode() + b"\r\n\r\n",
    ],
)  # fmt: skip
async def test_chunked_lies_are_refused(wire):
    headers = {"x-amz-decoded-content-length": "3", "x-amz-trailer": "x-amz-checksum-crc32"}
    body = body_of(wire, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", headers)
    with pytest.raises((BadRequest, WrongSize, ChecksumMismatch)):
        [piece async for piece in body.pieces()]


@pytest.mark.parametrize("name", ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"])
async def test_stated_checksums_are_held(name):
    data = bytes(range(256)) * 300
    found = body_of(data, "UNSIGNED-PAYLOAD", {"content-length": str(len(data)), "x-amz-trailer": ""}).found
    assert found == {}
    from doma.doors.s3_body import summer

    right = summer(name)
    right.update(data)
    value = base64.b64encode(bytes.fromhex(right.hexdigest())).decode()
    for text, fine in ((value, True), (base64.b64encode(bytes(len(right.hexdigest()) // 2)).decode(), False)):
        headers = {"content-length": str(len(data)), f"x-amz-checksum-{name}": text}
        body = body_of(data, "UNSIGNED-PAYLOAD", headers)
        if fine:
            assert b"".join([piece async for piece in body.pieces()]) == data
        else:
            with pytest.raises(ChecksumMismatch):
                [piece async for piece in body.pieces()]


@given(st.lists(st.binary(max_size=3000), max_size=4))
def test_crc64_is_the_same_however_it_is_cut(pieces):
    one, many = Crc64(), Crc64()
    one.update(b"".join(pieces))
    for piece in pieces:
        for at in range(0, len(piece), 700):
            many.update(piece[at : at + 700])
    assert one.hexdigest() == many.hexdigest()


def test_the_checksum_of_parts_is_not_taken_for_one_of_the_whole():
    # the composite that S3 gives for parts: a checksum of their checksums
    parts = [b"a" * 10, b"b" * 10]
    composite = crc32c.crc32c(b"".join(crc32c.crc32c(p).to_bytes(4, "big") for p in parts))
    assert composite != crc32c.crc32c(b"".join(parts))


part = st.text("ab-.!0", min_size=1, max_size=3).filter(lambda name: name.strip("."))


@settings(max_examples=80, deadline=None)
@given(
    st.sets(st.lists(part, min_size=1, max_size=3).map("/".join), max_size=12),
    st.text("ab-./", max_size=3),
    st.data(),
)
async def test_keys_walk_in_their_order_from_anywhere(keys, prefix, data):
    keys = {k for k in keys if not any(other.startswith(k + "/") for other in keys)}
    store = MemoryStore()
    for key in keys:
        upload = await store.create("/top/" + key)
        await upload.commit()
    every = sorted(k for k in keys if k.startswith(prefix))
    after = data.draw(st.sampled_from(["", *every]))
    found = [f.key async for f in walk(store, "/top", prefix, after, deep=True)]
    assert found == [k for k in every if k > after]
    flat = sorted({k[: k.find("/", len(prefix)) + 1] if "/" in k[len(prefix) :] else k for k in every})
    assert [f.key async for f in walk(store, "/top", prefix, "", deep=False)] == flat


def test_documents_are_read_with_and_without_their_namespace():
    text = '<Delete%s><Quiet>true</Quiet><Object><Key>a &amp; b</Key><ETag>"v"</ETag></Object></Delete>'
    for namespace in ("", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'):
        assert keys_of((text % namespace).encode()) == ([("a & b", "v")], True)
    with pytest.raises(BadRequest):
        parts_of(b"<Delete/>")
    assert tag("Key", "a\x01<b>\ufffe") == "<Key>a\ufffd&lt;b&gt;\ufffd</Key>"


async def test_walks_that_nobody_goes_on_with_are_given_up():
    store, now = MemoryStore(), [0.0]
    for i in range(3):
        await (await store.create(f"/{i}")).commit()
    walks, begun = Walks(lambda: now[0]), []
    for i in range(WAITING + 1):
        walking = walk(store, "", "", "", deep=True)
        begun.append(walking)
        await walks.keep(i, await anext(walking), walking)
    assert walks.take(0) is None
    with pytest.raises(StopAsyncIteration):
        await anext(begun[0])
    found, walking = walks.take(1)
    assert (found.key, (await anext(walking)).key) == ("0", "1")
    assert walks.take(1) is None
    now[0] = PATIENCE + 1
    assert walks.take(2) is None
    await walks.keep("new", found, walking)
    assert walks.take(3) is None
    assert walks.take("new") is not None
    for walking in begun:
        await walking.aclose()

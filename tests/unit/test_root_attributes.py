"""Extended attributes at the root door, over a store in memory; no socket."""

import json
import struct
import zlib

import pytest

from doma.auth.gate import Gate
from doma.auth.model import Verb
from doma.core.errors import (
    BadRequest,
    ChecksumMismatch,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotAllowed,
    NotFound,
)
from doma.doors.dav_xml import changed
from doma.doors.endpoint import Endpoint
from doma.net.xroot_frames import P_FATTR, Attribute, Code, attribute_answer, attribute_request
from doma.store.memory import MemoryStore
from tests.unit.root_client import ISSUER, Client, refused, who


@pytest.fixture
def client() -> Client:
    gates = {name: Gate({ISSUER: ["/"]}, name=name) for name in ("site", "data")}
    return Client(
        site=Endpoint("site", MemoryStore(), gates["site"]),
        data=Endpoint("data", MemoryStore(), gates["data"], writable=False),
    )


async def ask(client: Client, act: int, data: bytes, count: int = 1, options: int = 0) -> bytes:
    return await client.ask(Code.FATTR, data, P_FATTR.pack(bytes(4), act, count, options))


async def set_one(client: Client, name: str, value: bytes, path: bytes = b"/site/f", options: int = 0) -> int:
    told = await ask(client, Attribute.SET, attribute_request(path, name, value), options=options)
    return int.from_bytes(told[2:4], "big")


async def get_one(client: Client, name: str, path: bytes = b"/site/f") -> tuple[int, bytes]:
    return attribute_answer(await ask(client, Attribute.GET, attribute_request(path, name)), name)


@pytest.mark.parametrize("name", ["a", "h_61", "a b/<&>", "Σ", "x" * 248, "1st"])
@pytest.mark.parametrize("value", [b"", b"text", bytes(range(256))])
async def test_what_is_set_is_got_whatever_its_name_and_bytes(client, name, value):
    await client.put("/site/f", b"1")
    assert await set_one(client, name, value) == 0
    assert await get_one(client, name) == (0, value)
    assert await ask(client, Attribute.LIST, b"/site/f\0", 0) == name.encode() + b"\0"
    told = await ask(client, Attribute.LIST, b"/site/f\0", 0, 0x10)
    assert told == name.encode() + b"\0" + struct.pack(">i", len(value)) + value
    assert client.told()[-1] == ("properties.changed", "/site/f")
    assert (await ask(client, Attribute.DELETE, attribute_request(b"/site/f", name)))[:4] == b"\0\x01\0\0"
    assert await get_one(client, name) == (3027, b"")
    assert await ask(client, Attribute.LIST, b"/site/f\0", 0) == b""


async def test_several_are_changed_together_or_not_at_all(client):
    await client.put("/site/f", b"1")
    await set_one(client, "b", b"old")
    names = b"\0\0a\0\0\0b\0"
    values = struct.pack(">i", 1) + b"1" + struct.pack(">i", 1) + b"2"
    told = await ask(client, Attribute.SET, b"/site/f\0" + names + values, 2, 0x01)
    assert told == b"\x01\x02\0\0a\0" + struct.pack(">H", 3018) + b"b\0"
    assert await get_one(client, "a") == (3027, b"")
    assert (await ask(client, Attribute.SET, b"/site/f\0" + names + values, 2))[0] == 0
    told = await ask(client, Attribute.GET, b"/site/f\0" + names + b"\0\0c\0", 3)
    assert told[:2] == b"\x01\x03"
    assert told.endswith(b"\0\0\0\x011" + b"\0\0\0\x012" + bytes(4))


async def test_what_is_kept_is_well_formed_for_webdav(client):
    await client.put("/site/f", b"1")
    await set_one(client, "a<b> &", b"<&>\0")
    ((key, text),) = (await client.site.endpoints["site"].store.annotations("/f")).items()
    document = f'<propertyupdate xmlns="DAV:"><set><prop>{text}</prop></set></propertyupdate>'
    assert list(changed(document.encode())) == [key]


@pytest.mark.parametrize(
    ("local", "text"),
    [
        ("b", ">a<"),
        ("b", ">aaaaa<"),
        ("b", "><x/>YQ==<"),
        ("h_00", ">YQ==<"),
        ("h_ff", ">YQ==<"),
        ("h_610062", ">YQ==<"),
    ],
)
async def test_what_webdav_put_in_the_place_of_an_attribute_harms_no_other(client, local, text):
    await client.put("/site/f", b"1")
    await set_one(client, "a", b"1")
    notes = {
        "{http://xrootd.org/fattr}" + local: f'<x:{local} xmlns:x="http://xrootd.org/fattr"{text}/x:{local}>'
    }
    await client.site.endpoints["site"].store.annotate("/f", notes)
    assert await ask(client, Attribute.LIST, b"/site/f\0", 0) == b"a\0"
    assert await get_one(client, "a") == (0, b"1")
    assert await get_one(client, "b") == (3027, b"")


async def test_the_record_of_checksums_is_true_whatever_is_claimed(client):
    await client.put("/site/f", b"12345")
    code, told = await get_one(client, "doma")
    record = json.loads(told)
    assert (code, record["sums"]) == (0, {"adler32": f"{zlib.adler32(b'12345'):08x}"})
    md5 = "827ccb0eea8a706c4c34a16891f84e7b"
    assert await set_one(client, "doma", json.dumps({"of": "x", "sums": {"md5": md5}}).encode()) == 0
    assert json.loads((await get_one(client, "doma"))[1])["sums"]["md5"] == md5
    false = json.dumps({"of": "x", "sums": {"md5": "0" * 32}}).encode()
    await refused(set_one(client, "doma", false), ChecksumMismatch, 3019)
    await refused(set_one(client, "doma", b"{"), BadRequest, 3000)
    await refused(set_one(client, "doma", b"[" * 100_000), DomaError, 3002)
    assert await ask(client, Attribute.LIST, b"/site/f\0", 0) == b""


async def test_who_may_not_change_a_file_changes_no_attribute(client):
    await client.put("/site/f", b"1")
    client.session.identity = who((Verb.READ, "/"))
    assert await get_one(client, "a") == (3027, b"")
    await refused(set_one(client, "a", b"1"), Forbidden, 3010)
    await refused(set_one(client, "a", b"1", b"/data/f"), NotAllowed, 3025)
    await refused(get_one(client, "a", b"/site/gone"), NotFound, 3011)


@pytest.mark.parametrize(
    ("act", "count", "data"),
    [
        (1, 1, b"/site/f"),
        (1, 1, b"/site/f\0"),
        (1, 1, b"/site/f\0\0\0"),
        (1, 1, b"/site/f\0\0\0\0"),
        (1, 2, b"/site/f\0\0\0a\0"),
        (1, 2, b"/site/f\0\0\0a\0\0\0a\0"),
        (1, 0, b"/site/f\0"),
        (1, 17, b"/site/f\0" + b"\0\0a\0" * 17),
        (1, 1, b"/site/f\0\0\0" + b"x" * 249 + b"\0"),
        (1, 1, b"/site/f\0\0\0\xff\0"),
        (3, 1, b"/site/f\0\0\0a\0"),
        (3, 1, b"/site/f\0\0\0a\0\0\0\0\x05abc"),
        (3, 1, b"/site/f\0\0\0a\0\xff\xff\xff\xff"),
        (9, 1, b"/site/f\0\0\0a\0"),
    ],
)
async def test_vectors_that_lie_are_refused(client, act, count, data):
    await client.put("/site/f", b"1")
    await refused(ask(client, act, data, count), BadRequest, 3000)


async def test_large_values_are_refused(client):
    await client.put("/site/f", b"1")
    await refused(set_one(client, "a", bytes((64 << 10) + 1)), LimitExceeded, 3002)
    await refused(set_one(client, "a", bytes(64 << 10)), LimitExceeded, 3002)
    assert await get_one(client, "a") == (3027, b"")

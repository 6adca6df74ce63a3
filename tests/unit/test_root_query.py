"""What the root door answers about files and itself, over a store in memory; no socket."""

import json
import zlib

import pytest

from doma.auth.gate import Gate
from doma.auth.model import Verb
from doma.core.errors import (
    BadRequest,
    Conflict,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotFound,
    Unsupported,
)
from doma.doors.endpoint import Endpoint
from doma.net.xroot_frames import (
    P_QUERY,
    Code,
)
from doma.store.memory import MemoryStore
from tests.unit.root_client import ISSUER, Client, refused, who


@pytest.fixture
def client() -> Client:
    gate = Gate({ISSUER: ["/"]}, name="site")
    closed = Endpoint("data", MemoryStore(), Gate({ISSUER: ["/"]}, name="data"), writable=False)
    return Client(site=Endpoint("site", MemoryStore(), gate), data=closed)


async def ask_for(client: Client, kind: int, data: bytes) -> str:
    return (await client.ask(Code.QUERY, data, P_QUERY.pack(kind, bytes(4)))).decode()


async def test_checksums_are_told_under_the_name_that_was_asked_for(client):
    await client.put("/site/f", b"12345")
    assert await ask_for(client, 3, b"/site/f") == f"adler32 {zlib.adler32(b'12345'):08x}\0"
    assert await ask_for(client, 3, b"/site/f?cks.type=md5") == "md5 827ccb0eea8a706c4c34a16891f84e7b\0"
    error = await refused(ask_for(client, 3, b"/site/f?cks.type=crc64"), DomaError, 3012)
    assert error.message == "crc64 checksum not supported."
    await refused(ask_for(client, 3, b"/site"), Conflict, 3016)
    await refused(ask_for(client, 3, b"/site/gone"), NotFound, 3011)


async def test_config_answers_a_line_a_key_and_repeats_what_it_does_not_know(client):
    told = await ask_for(client, 7, b"readv_iov_max\nreadv_ior_max tpc\nchksum nonsense\0")
    assert told == "1024\n2097136\ntpc\n0:adler32,1:crc32c,2:md5,3:sha-256\nnonsense\n"
    assert await ask_for(client, 7, b"role sitename bind_max") == "server\nlocalhost\n15\n"
    await refused(ask_for(client, 7, b"k" * 5000), LimitExceeded, 3002)


async def test_space_attributes_and_statistics_are_told(client):
    await client.put("/site/f", b"12345")
    assert "&oss.used=5&" in await ask_for(client, 5, b"/site")
    assert "&oss.used=5&" in await ask_for(client, 5, b"/")
    assert "oss.type=f&oss.used=5&" in await ask_for(client, 4, b"/site/f")
    assert (await ask_for(client, 1, b"a")).startswith("<statistics ")
    await refused(ask_for(client, 16, b""), Unsupported, 3013)
    await refused(ask_for(client, 99, b""), BadRequest, 3000)


async def test_set_takes_what_clients_send_and_refuses_the_rest(client):
    assert await client.ask(Code.SET, b"appid my \x1bjob\0") == b""
    assert client.session.app == "my job"
    assert await client.ask(Code.SET, b"monitor info hello") == bytes(4)
    assert await client.ask(Code.SET, b"monitor off") == b""
    for words in (b"", b"cache", b"cache eat /site/f", b"other thing", b"cache evict /site/f"):
        await refused(client.ask(Code.SET, words), BadRequest, 3000)


async def test_prepare_is_answered_where_nothing_can_be_staged(client):
    await client.put("/site/f", b"1")
    client.session.identity = who((Verb.READ, "/"), (Verb.STAGE, "/"))
    stage = bytes([8]) + bytes(15)
    await refused(client.ask(Code.PREPARE, b"/site/f", stage), Unsupported, 3013)
    await refused(client.ask(Code.PREPARE, b"some-id", bytes([1]) + bytes(15)), NotFound, 3011)
    client.session.identity = who((Verb.READ, "/"))
    await refused(client.ask(Code.PREPARE, b"/site/f", stage), Forbidden, 3010)
    told = json.loads((await ask_for(client, 2, b"id\n/site/f\n/site/gone")).rstrip("\0"))
    assert told["request_id"] == "id"
    assert [(r["path"], r["path_exists"], r["online"]) for r in told["responses"]] == [
        ("/site/f", True, True),
        ("/site/gone", False, False),
    ]

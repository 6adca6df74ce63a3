"""The root:// engine against a server that lies, stalls, redirects and puts off; over our own frames."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from doma.auth.model import bearer
from doma.core.errors import (
    CorruptFile,
    Forbidden,
    OriginFailed,
    PreconditionFailed,
    StorageUnavailable,
    TimedOut,
    Unauthenticated,
)
from doma.net import xroot_frames as frames
from doma.net.tls import ensure, server_context
from doma.net.xroot_frames import Code, Server, Status
from doma.net.xroot_pages import FINAL, error_list, interleaved, page_answer, separated
from doma.net.xroot_session import Times
from doma.net.xroot_text import ztn_token
from doma.store.xrootd import XrootdStore

LINE = b"7 10000 16 1000\0"
DATA = bytes(range(250)) * 40
QUICK = Times(connect=5, answer=0.3, wait=2)


class Fake:
    """Answers as a small server with one file does, unless told otherwise."""

    def __init__(self):
        self.seen: list[tuple[int, bytes]] = []
        self.flags = Server.DATA | Server.PAGES
        self.security = b""
        self.tokens: list[str] = []
        self.tls: ssl.SSLContext | None = None
        self.port = 0
        self.instead = {}
        """Code to a function of head and data, which gives the bytes to answer, or None for the usual."""

    async def serve(self, reader, writer):
        try:
            assert await reader.readexactly(20) == frames.HELLO.pack(*frames.GREETING)
            writer.write(frames.answer(0, Status.OK, bytes(8)))
            while True:
                head = frames.request_head(await reader.readexactly(24))
                data = await reader.readexactly(head.length)
                self.seen.append((head.code, data))
                special = self.instead.get(head.code, lambda *_: None)(head, data)
                writer.write(self.usual(head, data) if special is None else special)
                if head.code == Code.PROTOCOL and self.tls is not None:
                    await writer.start_tls(self.tls)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def usual(self, head, data):
        body = b""
        if head.code == Code.PROTOCOL:
            flags = self.flags | (Server.HAVE_TLS | Server.GOTO_TLS if self.tls else 0)
            body = frames.VERSION.to_bytes(4, "big") + int(flags).to_bytes(4, "big")
        elif head.code == Code.LOGIN:
            body = bytes(16) + self.security
        elif head.code == Code.AUTH:
            self.tokens.append(ztn_token(data))
        elif head.code == Code.STAT:
            body = LINE
        elif head.code == Code.OPEN:
            body = bytes(12) + LINE
        elif head.code == Code.PGREAD:
            _, start, length = frames.P_READ.unpack(head.body)
            return page_answer(
                head.stream, head.code, FINAL, start, interleaved(start, DATA[start : start + length])
            )
        elif head.code == Code.PGWRITE:
            return page_answer(head.stream, head.code, FINAL, 0)
        elif head.code in {Code.FATTR, Code.QUERY}:
            return refuse(head, 3013)
        return frames.answer(head.stream, Status.OK, body)


def refuse(head, code):
    return frames.answer(head.stream, Status.ERROR, frames.with_text(code, "no"))


def point(head, port, text="127.0.0.1"):
    return frames.answer(head.stream, Status.REDIRECT, frames.with_text(port, text))


@asynccontextmanager
async def faked():
    fake = Fake()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    async with server:
        yield fake


@pytest.fixture
async def fake():
    async with faked() as one:
        yield one


@pytest.fixture
async def store(fake):
    store = XrootdStore(f"root://127.0.0.1:{fake.port}//", times=QUICK)
    yield store
    await store.close()


async def test_a_page_damaged_on_the_way_is_asked_for_again(fake, store):
    def once(head, data):
        _, start, length = frames.P_READ.unpack(head.body)
        wire = bytearray(interleaved(start, DATA[start : start + length]))
        if data[1] == 0:
            wire[4200] ^= 1
        return page_answer(head.stream, head.code, FINAL, start, bytes(wire))

    fake.instead[Code.PGREAD] = once
    reader = await store.open("/f")
    assert bytes(await reader.read(0, 10_000)) == DATA
    assert [data for code, data in fake.seen if code == Code.PGREAD] == [b"\0\0", b"\0\1"]
    await reader.close()


async def test_a_page_that_stays_damaged_is_never_given(fake, store):
    def always(head, data):
        _, start, length = frames.P_READ.unpack(head.body)
        wire = bytearray(interleaved(start, DATA[start : start + length]))
        wire[10] ^= 1
        return page_answer(head.stream, head.code, FINAL, start, bytes(wire))

    fake.instead[Code.PGREAD] = always
    reader = await store.open("/f")
    with pytest.raises(CorruptFile, match="page at 0"):
        await reader.read(0, 10_000)
    await reader.close()


async def test_a_short_answer_is_a_changed_file_and_not_fewer_bytes(fake, store):
    fake.instead[Code.PGREAD] = lambda head, _: page_answer(
        head.stream, head.code, FINAL, 0, interleaved(0, DATA[:5000])
    )
    reader = await store.open("/f")
    with pytest.raises(PreconditionFailed):
        await reader.read(0, 10_000)
    await reader.close()


async def test_a_file_without_page_checksums_is_read_plainly(fake, store):
    fake.flags = Server.DATA

    def parts(head, _):
        _, start, length = frames.P_READ.unpack(head.body)
        first, rest = DATA[start : start + 7], DATA[start + 7 : start + length]
        return frames.answer(head.stream, Status.OKSOFAR, first) + frames.answer(head.stream, 0, rest)

    fake.instead[Code.READ] = parts
    reader = await store.open("/f")
    assert bytes(await reader.read(5, 10_000)) == DATA[5:]
    await reader.close()


async def test_pages_that_arrive_damaged_at_the_server_are_sent_again(fake, store):
    got, bad = {}, []

    def damaged(head, data):
        _, offset, _, flags = frames.P_PGWRITE.unpack(head.body)
        got[offset, flags] = separated(offset, data)[0]
        extra = error_list([(4096, 904)]) if not flags else b""
        bad.append(extra)
        return page_answer(head.stream, head.code, FINAL, offset, extra)

    fake.instead[Code.PGWRITE] = damaged
    fake.instead[Code.STAT] = lambda head, data: (
        frames.answer(head.stream, 0, b"8 5000 16 1000\0") if b".doing-" in data
        else frames.answer(head.stream, 0, b"1 0 19 1\0") if data == b"/" else refuse(head, 3011)
    )  # fmt: skip
    upload = await store.create("/f")
    await upload.write(DATA[:5000])
    assert (await upload.commit()).size == 5000
    assert got == {(0, 0): DATA[:5000], (4096, frames.RETRY): DATA[4096:5000]}


async def test_a_server_that_stores_another_length_gets_nothing_published(fake, store):
    fake.instead[Code.STAT] = lambda head, data: (
        frames.answer(head.stream, 0, b"8 4999 16 1000\0") if b".doing-" in data
        else frames.answer(head.stream, 0, b"1 0 19 1\0") if data == b"/" else refuse(head, 3011)
    )  # fmt: skip
    upload = await store.create("/f")
    await upload.write(DATA[:5000])
    with pytest.raises(OriginFailed, match="4999"):
        await upload.commit()
    assert [code for code, _ in fake.seen if code in {Code.MV, Code.RM}] == [Code.RM]


async def test_a_redirect_is_followed_with_its_opaque_text_and_the_file_stays_there(fake, store):
    async with faked() as other:
        fake.instead[Code.OPEN] = lambda head, _: point(head, other.port, "127.0.0.1?key=1&x=2")
        reader = await store.open("/f")
        assert bytes(await reader.read(0, 100)) == DATA[:100]
        await reader.close()
        assert (Code.OPEN, b"/f?key=1&x=2") in other.seen
        assert Code.PGREAD not in [code for code, _ in fake.seen]


async def test_a_circle_of_redirects_ends(fake, store):
    fake.instead[Code.STAT] = lambda head, _: point(head, fake.port)
    with pytest.raises(OriginFailed, match="circle"):
        await store.stat("/f")


async def test_a_redirector_is_told_which_server_was_not_there(fake, store):
    def first(head, data):
        return None if b"tried=" in data else point(head, 1)

    fake.instead[Code.STAT] = first
    assert (await store.stat("/f")).size == 10_000
    assert (Code.STAT, b"/f?tried=127.0.0.1") in fake.seen


async def test_a_redirect_into_a_private_network_is_refused(fake):
    store = XrootdStore(f"root://127.0.0.1:{fake.port}//", times=QUICK)
    fake.instead[Code.STAT] = lambda head, _: point(head, 1094, "169.254.169.254")
    with pytest.raises(Forbidden, match="not allowed"):
        await store.stat("/f")
    await store.close()


async def test_a_wait_is_obeyed_but_not_for_ever(fake, store):
    turns = []

    def later(head, _):
        turns.append(1)
        if len(turns) < 3:
            return frames.answer(head.stream, Status.WAIT, frames.with_text(0, "busy"))
        return None

    fake.instead[Code.STAT] = later
    assert (await store.stat("/f")).size == 10_000
    fake.instead[Code.STAT] = lambda head, _: frames.answer(
        head.stream, Status.WAIT, frames.with_text(2**31 - 1, "busy")
    )
    with pytest.raises(TimedOut, match="puts it off"):
        await store.stat("/f")


async def test_an_answer_that_comes_by_itself_later_is_taken(fake, store):
    fake.instead[Code.STAT] = lambda head, _: (
        frames.answer(head.stream, Status.WAITRESP, (9).to_bytes(4, "big"))
        + frames.answer(0, Status.ATTN, frames.defer(frames.answer(head.stream, 0, LINE)))
    )
    assert (await store.stat("/f")).size == 10_000


async def test_a_server_that_stands_still_costs_a_time_limit_and_no_more(fake, store):
    await store.stat("/f")
    fake.instead[Code.STAT] = lambda *_: b""
    with pytest.raises(TimedOut):
        await store.stat("/f")
    fake.instead.clear()
    assert (await store.stat("/f")).size == 10_000


async def test_nonsense_is_not_asked_for_twice_and_the_connection_is_made_anew(fake, store):
    turns = []

    def cut(head, _):
        turns.append(1)
        return frames.ANSWER.pack(77, 4999, -1) if len(turns) == 1 else None

    fake.instead[Code.STAT] = cut
    with pytest.raises(OriginFailed):
        await store.stat("/f")
    assert (await store.stat("/f")).size == 10_000


async def test_a_token_is_told_over_tls_to_its_deployment_and_to_nobody_else(fake, tmp_path: Path):
    files = ensure(tmp_path, ["localhost"])
    fake.security = b"&P=ztn,0:4096:\0"
    plain = XrootdStore(f"root://127.0.0.1:{fake.port}//", times=QUICK)
    reset = bearer.set("t0ken")
    try:
        with pytest.raises(Unauthenticated, match="roots"):
            await plain.stat("/f")
        assert not any(b"t0ken" in data for _, data in fake.seen)
        fake.tls = server_context(files.certificate, files.key)
        secure = XrootdStore(f"root://127.0.0.1:{fake.port}//", ca_file=files.ca, times=QUICK)
        assert (await secure.stat("/f")).size == 10_000
        assert fake.tokens == ["t0ken"]
        async with faked() as other:  # localhost is another host than 127.0.0.1: no kin.
            other.tls = fake.tls
            fake.instead[Code.STAT] = lambda head, _: point(head, other.port, "localhost")
            await secure.stat("/f")
            assert other.seen
            assert not any(b"t0ken" in data for _, data in other.seen)
        fake.security = b""
        fake.instead.clear()
        again = XrootdStore(f"roots://127.0.0.1:{fake.port}//", ca_file=files.ca, times=QUICK)
        await again.stat("/f")
        assert (Code.STAT, b"/f?authz=Bearer%20t0ken") in fake.seen
        await again.close()
        await secure.close()
    finally:
        bearer.reset(reset)
    await plain.close()


async def test_roots_means_tls_or_nothing(fake):
    store = XrootdStore(f"roots://127.0.0.1:{fake.port}//", times=QUICK)
    with pytest.raises(OriginFailed, match="no TLS"):
        await store.stat("/f")
    assert Code.LOGIN not in [code for code, _ in fake.seen]
    await store.close()


async def test_a_server_that_closes_at_once_is_unavailable():
    async def close(reader, writer):
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        store = XrootdStore(f"root://127.0.0.1:{server.sockets[0].getsockname()[1]}//", times=QUICK)
        with pytest.raises(StorageUnavailable):
            await store.stat("/f")
        await store.close()


async def test_a_server_that_accepts_and_says_nothing_is_given_up_when_the_time_to_connect_is_over():
    went = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        writer.close()
        went.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = XrootdStore(f"root://127.0.0.1:{port}//", times=Times(connect=0.2, answer=3600))
        with pytest.raises(StorageUnavailable, match="no login within"):
            await asyncio.wait_for(store.stat("/f"), 20)
        await asyncio.wait_for(went.wait(), 20)
        await store.close()


async def test_a_tree_without_an_end_is_not_deleted_for_ever(fake):
    folder = LINE.replace(b" 16 ", b" 51 ")
    endless = b".\n0 0 0 0\nd\n" + folder
    fake.instead = {
        Code.STAT: lambda head, _: frames.answer(head.stream, Status.OK, folder),
        Code.DIRLIST: lambda head, _: frames.answer(head.stream, Status.OK, endless),
    }
    store = XrootdStore(f"root://127.0.0.1:{fake.port}//", times=QUICK)
    with pytest.raises(OriginFailed, match="in each other"):
        await store.delete("/x", recursive=True)
    await store.close()

"""Frames of root://: what one end packs the other reads, and no bytes of a stranger do harm."""

import asyncio
import os
from contextlib import suppress

import pytest
from crc32c import crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from doma.core.errors import BadCredential, BadRequest, DomaError, OriginFailed
from doma.net import xroot_frames as frames
from doma.net import xroot_pages as pages
from doma.net import xroot_text as text
from doma.net.xroot_errors import KINDS, code_of, error_of
from doma.net.xroot_frames import Code, Status
from doma.net.xroot_sinks import Fill, Gather, Pages
from doma.net.xroot_wire import Connection

BYTES = os.urandom(40_000)


def test_the_layouts_are_those_of_the_protocol():
    bodies = [value for name, value in vars(frames).items() if name.startswith("P_")]
    assert len(bodies) > 12
    assert {body.size for body in bodies} == {16}
    assert (frames.REQUEST.size, frames.ANSWER.size, frames.HELLO.size) == (24, 8, 20)
    assert (frames.SEGMENT.size, pages.STATUS.size) == (16, 24)
    # As xrdfs 5.5.3 sends them.
    assert frames.request(0x0100, Code.STAT, data=b"/f").hex() == "01000bc9" + "00" * 16 + "000000022f66"
    assert frames.P_OPEN.pack(0, 0x0450, 0).hex() == "00000450" + "00" * 12


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(min_size=16, max_size=16), st.binary())
def test_a_request_is_read_as_it_was_written(stream, code, body, data):
    sent = frames.request(stream, code, body, data)
    assert frames.request_head(sent) == (stream, code, body, len(data))
    assert sent[24:] == data


@pytest.mark.parametrize("length", [-1, -(2**31), 2**31 - 1, frames.MOST_DATA + 1])
def test_lengths_that_cannot_be_are_refused_on_both_sides(length):
    with pytest.raises(BadRequest):
        frames.request_head(frames.REQUEST.pack(1, Code.WRITE, bytes(16), length))
    if length < 0:
        with pytest.raises(OriginFailed):
            frames.answer_head(frames.ANSWER.pack(1, 0, length))


@pytest.mark.parametrize("status", [1, 3999, 4008, 65535])
def test_an_unknown_status_ends_the_conversation(status):
    with pytest.raises(OriginFailed, match="status"):
        frames.answer_head(frames.ANSWER.pack(1, status, 0))


@given(st.integers(0, 1 << 40), st.integers(0, 20_000))
def test_pages_come_apart_as_they_were_put_together(offset, size):
    data = BYTES[:size]
    wire = pages.interleaved(offset, data)
    assert len(wire) == pages.framed(offset, size)
    assert pages.separated(offset, wire) == (data, [])


@given(st.integers(0, 9000), st.integers(1, 20_000), st.data())
def test_every_flipped_bit_is_found_in_its_page(offset, size, data):
    wire = bytearray(pages.interleaved(offset, BYTES[:size]))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= 1 << data.draw(st.integers(0, 7))
    _, bad = pages.separated(offset, bytes(wire))
    assert len(bad) == 1
    where, length = bad[0]
    assert 1 <= length <= pages.PAGE
    assert offset <= where < where + length <= offset + size
    assert where == offset or where % pages.PAGE == 0
    again = pages.corrections(pages.error_list(bad), offset, size)
    assert again == bad


@given(st.integers(0, 9000), st.integers(1, 20_000), st.lists(st.integers(1, 9000)))
def test_pages_may_be_cut_anywhere_by_the_network(offset, size, cuts):
    wire = memoryview(pages.interleaved(offset, BYTES[:size]))
    into = memoryview(bytearray(size))
    target = pages.PageTarget(into, offset)
    target.begin(offset, len(wire))
    at = seen = 0
    for cut in [*cuts, len(wire)]:
        seen = max(seen, min(len(wire), at + cut))
        at += target.feed(wire[at:seen])
    at += target.feed(wire[at:])
    assert at == len(wire)
    assert (bytes(into), target.got, target.bad) == (BYTES[:size], size, [])


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4101), (0, 3), (8, 10), (0, 4), (4096, 10), (0, 2**31 - 1), (0, 4104)]
)
def test_pages_that_were_not_asked_for_are_refused(offset, length):
    target = pages.PageTarget(memoryview(bytearray(4096)), 0)
    with pytest.raises(OriginFailed):
        target.begin(offset, length)


@given(st.binary(max_size=80))
@example(b"")
@example(b"\xff" * 24)
def test_any_bytes_are_read_or_refused_by_every_parser(data):
    for parse in (
        frames.number_and_text,
        frames.deferred,
        frames.segments,
        lambda d: frames.attribute_answer(d, "doma"),
        lambda d: pages.corrections(d, 0, 1 << 20),
        lambda d: pages.page_head(d.ljust(24, b"\0")),
        lambda d: pages.separated(7, d),
        lambda d: list(text.listing(d)),
        lambda d: list(text.listing(b".\n0 0 0 0\n" + d)),
        text.ztn_token,
        lambda d: text.stat_line(d.decode("latin-1")),
        lambda d: text.protocols(d.decode("latin-1")),
        lambda d: text.redirect(1094, d.decode("latin-1")),
        lambda d: text.redirect(-1, "root://" + d.decode("latin-1")),
    ):
        with suppress(OriginFailed, BadRequest, BadCredential):
            parse(data)


@given(st.lists(st.tuples(st.text("ab .é", min_size=1).filter(lambda n: n not in {".", ".."}),
                          st.integers(0, 1 << 63), st.integers(0, 1 << 33))))  # fmt: skip
def test_a_listing_is_read_as_it_was_written(entries):
    lines = [(name, text.StatLine(1, size, 16, when, "0644")) for name, size, when in entries]
    assert list(text.listing(text.listing_text(lines) if lines else b"")) == lines


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (0, "a.org"), (70000, "a.org"), (-2, "root://a.org//f"), (-1, "https://a.org//f"), (-1, "file:///etc"),
        (1094, "a.org/x"), (1094, "user@a.org"), (1094, "a.org:1"), (1094, ""), (-1, "root://u@a.org//"),
        (1094, "[::1"), (-1, "root://a.org:99999//"),
    ],
)  # fmt: skip
def test_redirects_to_what_is_no_server_are_refused(port, said):
    with pytest.raises(OriginFailed):
        text.redirect(port, said)


@pytest.mark.parametrize(
    "data",
    [
             b"", b"ztn\0\0T\0\0\0", text.ztn("a")[:-1], b"ztn\0\1T\0\0\0\2a\0", b"ztn\0\0S\0\0\0\2a\0",
             b"ztn\0\0T\0\0\0\1\0",
             b"ztn\0\0T\0\0\xff\xffa\0", b"gsi\0\0T\0\0\0\2a\0", b"ztn\0\0T\0\0\0\3a\0\0",
    ],
)  # fmt: skip
def test_credentials_that_are_not_whole_are_refused(data):
    with pytest.raises(BadCredential):
        text.ztn_token(data)


def test_a_token_too_long_for_its_length_is_refused_before_it_is_sent():
    with pytest.raises(BadCredential, match="too long"):
        text.ztn("x" * 70_000)


def test_every_error_code_becomes_an_error_and_goes_back_to_one_of_its_kind():
    for code, kind in KINDS.items():
        error = error_of(code, "it <failed>\n", "/f: open")
        assert type(error) is kind
        assert KINDS[code_of(error)] is kind
        assert error.message == f"/f: open: the server says it failed (error {code})"
    assert type(error_of(1, "", "/f")) is OriginFailed


def test_a_token_that_a_server_quotes_is_not_repeated():
    assert "s3cret" not in error_of(3010, "token s3cret is bad", "/f", "s3cret").message


class Wire:
    """A connection without a network: bytes go in, what is sent is kept."""

    def __init__(self):
        self.sent = []
        self.connection = Connection("root://test:1")
        self.connection.connection_made(self)

    def write(self, data):
        self.sent.append(data)

    def is_closing(self):
        return False

    def abort(self):
        pass

    def receive(self, data, cuts=()):
        at = 0
        for cut in [*cuts, len(data)]:
            piece = data[at : at + cut]
            while piece and self.connection.error is None:
                room = self.connection.get_buffer(-1)
                n = min(len(room), len(piece))
                room[:n] = piece[:n]
                self.connection.buffer_updated(n)
                piece, at = piece[n:], at + n


def of(stream, status, body=b""):
    return frames.answer(stream, status, body)


async def test_answers_in_any_order_and_in_parts_find_their_questions():
    wire = Wire()
    big, small = memoryview(bytearray(100_000)), memoryview(bytearray(5))
    data = os.urandom(100_000)
    one = wire.connection.start(Code.READ, bytes(16), b"", Fill(big), 60)
    two = wire.connection.start(Code.READ, bytes(16), b"", Fill(small), 60)
    three = wire.connection.start(Code.STAT, bytes(16), b"/f", Gather(), 60)
    sums = memoryview(bytearray(9000))
    four = wire.connection.start(Code.PGREAD, bytes(16), b"", Pages(pages.PageTarget(sums, 100)), 60)
    wire.receive(
        of(three.stream, Status.WAITRESP, b"\0\0\0\5")
        + of(one.stream, Status.OKSOFAR, data[:40_000])
        + pages.page_answer(four.stream, Code.PGREAD, pages.PARTIAL, 100, pages.interleaved(100, data[:3996]))
        + of(two.stream, Status.OK, b"12345")
        + of(0, Status.ATTN, frames.defer(of(three.stream, Status.OK, b"1 2 3 4")))
        + of(0, Status.ATTN, b"\0\0\x13\x8ahello")
        + of(one.stream, Status.OK, data[40_000:])
        + pages.page_answer(
            four.stream, Code.PGREAD, pages.FINAL, 4096, pages.interleaved(4096, data[3996:9000])
        )
    )
    assert [(await wire.connection.finish(call)).status for call in (one, two, three, four)] == [0, 0, 0, 0]
    assert (bytes(big), bytes(small), bytes(three.sink.data)) == (data, b"12345", b"1 2 3 4")
    assert bytes(sums) == data[:9000]
    wire.connection.connection_lost(None)


async def test_a_caller_that_left_is_not_written_to_and_others_go_on():
    wire = Wire()
    gone, here = memoryview(bytearray(100_000)), memoryview(bytearray(100_000))
    one = wire.connection.start(Code.READ, bytes(16), b"", Fill(gone), 60)
    two = wire.connection.start(Code.READ, bytes(16), b"", Fill(here), 60)
    wire.receive(of(one.stream, Status.OK, b"\xff" * 100_000)[:50_000])
    wire.connection.leave(one)
    left = bytes(gone)
    wire.receive(b"\xff" * 50_008 + of(two.stream, Status.OK, b"\xee" * 100_000))
    assert (await wire.connection.finish(two)).status == Status.OK
    assert bytes(gone) == left
    assert bytes(here) == b"\xee" * 100_000
    wire.connection.connection_lost(None)


@pytest.mark.parametrize(
    "answer",
    [
        of(9, Status.OK, b"x"),  # to nobody
        of(1, Status.OK, b"x" * 11),  # more than was asked for
        frames.ANSWER.pack(1, Status.OK, 2**31 - 1),
        frames.ANSWER.pack(1, Status.OK, -1),
        frames.ANSWER.pack(1, Status.ERROR, 2**31 - 1),
        of(1, 4999),
        of(1, Status.STATUS, b"short"),
        of(1, Status.STATUS, bytes(24)),  # a wrong checksum
        pages.page_answer(2, Code.PGREAD, 0, 0)[:8].replace(b"\0\2", b"\0\1", 1)
        + pages.page_answer(2, Code.PGREAD, 0, 0)[8:],
        of(0, Status.ATTN, frames.defer(of(1, Status.OK, b"12"))[:-1]),
        of(0, Status.ATTN, frames.defer(of(1, Status.OKSOFAR, b"12"))),
        of(1, Status.WAITRESP),
    ],
)
async def test_a_server_that_breaks_the_protocol_is_given_up(answer):
    wire = Wire()
    call = wire.connection.start(Code.READ, bytes(16), b"", Fill(memoryview(bytearray(10))), 60)
    assert call.stream == 1
    wire.receive(answer)
    with pytest.raises(OriginFailed, match="root://test:1"):
        await wire.connection.finish(call)
    with pytest.raises(OriginFailed):
        await wire.connection.ask(Code.PING)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                of,
                st.integers(0, 4),
                st.sampled_from([*Status, 1]),
                st.one_of(st.binary(max_size=40), st.builds(bytes, st.integers(0, 70_000))),
            ),
            st.builds(
                pages.page_answer,
                st.integers(0, 4),
                st.just(Code.PGREAD),
                st.integers(0, 2),
                st.integers(0, 9000),
                st.binary(max_size=30),
            ),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 50), max_size=20),
)
async def test_whatever_a_server_sends_every_question_ends(answers, cuts):
    wire = Wire()
    start = wire.connection.start
    calls = [
        start(Code.READ, bytes(16), b"", Fill(memoryview(bytearray(40_000))), 60),
        start(Code.PGREAD, bytes(16), b"", Pages(pages.PageTarget(memoryview(bytearray(9000)), 0)), 60),
        start(Code.STAT, bytes(16), b"", Gather(), 60),
        start(Code.DIRLIST, bytes(16), b"", Gather(1 << 20), 60),
    ]
    wire.receive(b"".join(answers), cuts)
    wire.connection.connection_lost(None)
    done = await asyncio.gather(*map(wire.connection.finish, calls), return_exceptions=True)
    assert all(isinstance(one, DomaError | tuple) for one in done)


def test_our_crc32c_is_that_of_the_protocol():
    assert crc32c(b"123456789") == 0xE3069283

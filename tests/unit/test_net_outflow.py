"""Sending an answer at once: all of it, or an exact account of what is left."""

import socket

import pytest

from doma.net.exchange import Buffer, Span
from doma.net.outflow import send_at_once

DATA = bytes(range(256)) * 4096


class Nothing:
    def view(self, start: int, stop: int) -> memoryview | None:
        return None

    def fileno(self, start: int, stop: int) -> int | None:
        return None


async def cold(start: int, stop: int) -> Buffer:
    return DATA[start:stop]


@pytest.mark.parametrize(("start", "stop"), [(5, 70), (3, len(DATA))])
def test_what_did_not_fit_into_the_socket_is_left_in_head_and_span(tmp_path, start, stop):
    path = tmp_path / "f"
    path.write_bytes(DATA)
    ours, theirs = socket.socketpair()
    got = b""
    with ours, theirs, path.open("rb") as file:
        ours.setblocking(False)
        span = Span(Nothing(), start, stop, cold, file.fileno())
        head, turns = b"head", 0
        left = head
        while left is not None:
            left, turns = send_at_once(ours, left, span), turns + 1
            unsent = stop - span.start
            while len(got) < len(head) + stop - start - unsent - len(left or b""):
                got += theirs.recv(1 << 20)
    assert got == head + DATA[start:stop]
    assert (turns > 1) == (stop == len(DATA))

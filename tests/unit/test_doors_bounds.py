"""What clients say costs a server a bounded amount of memory."""

from collections.abc import Iterator

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.reads import LONGEST, Asked, HttpReads
from doma.monitor.opens import Opened
from doma.net.exchange import Request
from doma.store.memory import MemoryStore


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.files: list[Opened] = []

    def opened(self, file: Opened) -> None:
        self.files.append(file)

    def closed(self, file: Opened, *, forced: bool = False) -> None:
        pass

    def left(self, session: int) -> None:
        pass


def test_a_client_that_calls_itself_by_a_long_name_is_remembered_by_its_beginning() -> None:
    told = Told()
    reads = HttpReads(told, 30.0, clock=lambda: 0.0)
    first = reads.of(Asked("::1", True, "x" * 60_000, "y" * 60_000), None, "/a/f", 1, cached=False)
    assert len(first.file.client.app) == len(first.file.client.info) == LONGEST
    again = reads.of(Asked("::1", True, "x" * 50_000, "y" * 50_000), None, "/a/f", 1, cached=False)
    assert again is first
    assert len(told.files) == 1
    assert all(sum(map(len, key[1][2:])) <= 2 * LONGEST for key in reads._open)
    reads.close()


def test_long_targets_are_not_remembered() -> None:
    door = FastDoor(Site(Verifier([], []), {"a": Endpoint("a", MemoryStore(), Gate({}, name="a"))}))

    def targets() -> Iterator[bytes]:
        yield b"/a/f"
        yield from (b"/a/f?%d" % i + b"x" * 60_000 for i in range(3))
        yield from (b"/a/" + b"y" * i for i in range(4_000, 4_003))

    for target in targets():
        request = Request({}, tls=False, client=("::1", 1), server=("::1", 2))
        request.method, request.target = b"GET", target
        assert door.head(request) is None
    assert list(door._places) == [b"/a/f"]

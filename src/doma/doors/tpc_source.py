"""The source of a pull: what it says about its file, and how its bytes begin and go on.

The answer to the GET says all that is needed (size, version, checksum), so that no HEAD goes before it. A
source that tells checksums only when asked by HEAD is remembered, and asked first the next time; so is any
source of which several ranges are wanted.

Source: rules W38, W39, W49, W57-W61 of the storage contract.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from doma.core.checksum import COMPUTABLE, same
from doma.core.errors import DomaError, OriginFailed, PreconditionFailed, Replaced
from doma.doors.tpc_order import Order
from doma.doors.tpc_progress import Progress, blame
from doma.doors.tpc_remote import Remote, digests_of, want
from doma.net.byteranges import content_range
from doma.net.client import Response
from doma.net.sinks import Flow
from doma.store.http_status import is_strong, version_of

BLOCK = 64 << 20
"""Bytes of one ranged GET when there are several streams."""
KNOWN = 1024
"""Origins of which it is remembered how they tell checksums."""

_ODD = {403, 404, 500}
"""What XRootD 5.5 answers to a GET now and then without meaning it: 500 for a checksum of a file that is not
there, 404 while a connection is still busy with its last request. A HEAD tells what is true."""
_NO_HEAD = {403, 405, 501}
_CHEAP = ("adler32", "crc32c")


@dataclass(frozen=True, slots=True)
class Version:
    """What the source said about its file when its bytes began to flow."""

    text: str
    size: int | None
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """Whether a mix of two versions would be noticed."""
        return self.size is not None and (is_strong(self.text) or bool(self.checksums))


class Source:
    """One file of another server.

    Args:
        order: What is wanted.
        remote: The server.
        progress: Kept up to date.
        started: Called when an answer to the client need not wait for us any longer.
        by_head: Origins that tell checksums by HEAD only; shared by all transfers.
    """

    def __init__(
        self,
        order: Order,
        remote: Remote,
        progress: Progress,
        started: Callable[[], None],
        by_head: dict[str, None],
    ) -> None:
        self._order, self._remote = order, remote
        self._progress, self._started, self._by_head = progress, started, by_head

    async def open(self) -> tuple[Response, Flow, Version]:
        """Begin to read, and know the checksum that must come out (W58: before data flow)."""
        order = self._order
        self._progress.doing = "querying passive endpoint"
        if order.signed:
            return await self._begin(None, {})
        if order.streams > 1 or order.host in self._by_head:
            try:
                told = await self._ask()
            except DomaError as e:
                if e.detail.get("status") not in _NO_HEAD:
                    raise
                return await self._begin(None, {})
            return await self._surely(*told)
        try:
            answer, flow, version = await self._begin(None, {})
        except DomaError as e:
            if e.detail.get("status") not in _ODD:
                raise
            try:
                told = await self._ask()
            except DomaError as truth:  # of the same word twice, the one to GET has a text
                same_word = truth.detail.get("status") == e.detail["status"]
                raise (e if same_word else truth) from e
            return await self._surely(*told)
        if _usable(version.checksums) or not (order.verify or order.digests):
            return answer, flow, version
        answer.close()
        told = await self._ask()
        self._remember(order.host)
        return await self._surely(*told)

    async def _surely(self, size: int | None, checksums: dict[str, str]) -> tuple[Response, Flow, Version]:
        """Send the GET for a file that a HEAD has just shown to be there."""
        while True:
            try:
                return await self._begin(size, checksums)
            except DomaError as e:
                e.detail["transient"] = e.detail.get("status") in _ODD - {403}
                await self._remote.again(e)

    async def _ask(self) -> tuple[int | None, dict[str, str]]:
        """Size and checksums by HEAD."""
        head, checksums = await self._remote.digests(self._order.size, self._started)
        return head.length, checksums

    async def _begin(self, size: int | None, checksums: dict[str, str]) -> tuple[Response, Flow, Version]:
        """Send the GET; it is asked for checksums too when nobody was before."""
        several = self._order.streams > 1 and (size is None or size > BLOCK)
        asked = {} if checksums else want(self._order)
        answer, flow = await self._get(0, BLOCK if several else None, asked)
        found = content_range(answer.get("content-range")) if answer.status == 206 else None
        if answer.status == 206 and (found is None or found[0] or found[2] is None):
            answer.close()  # no part that could be trusted: then the whole
            answer, flow = await self._get(0, None, asked)
            found = None
        size = found[2] if found else answer.head.length
        if asked:  # XRootD 5.5 otherwise repeats what it said of another file
            checksums = digests_of(answer.head)
        return answer, flow, Version(version_of(answer.head, size or 0), size, checksums)

    def _remember(self, host: str) -> None:
        if len(self._by_head) >= KNOWN:
            del self._by_head[next(iter(self._by_head))]
        self._by_head[host] = None

    def expected(self, version: Version) -> dict[str, str]:
        """The checksums to verify: the client's, and the source's as far as they are cheap or alone.

        Raises:
            PreconditionFailed: client and source disagree, or nobody states one and the client wants it.
        """
        order, expected = self._order, dict(self._order.digests)
        if None not in {order.size, version.size} and order.size != version.size:
            raise blame(
                PreconditionFailed(f"source: has {version.size} bytes, the request says {order.size}"),
                "source",
            )
        for name, value in expected.items():
            if name in version.checksums and not same(name, version.checksums[name], value):
                raise blame(
                    PreconditionFailed(
                        f"source: its {name} is {version.checksums[name]}, the request says {value};"
                        " nothing was copied"
                    ),
                    "source",
                )
        usable = _usable(version.checksums)
        cheap = [name for name in usable if name in _CHEAP]
        if not expected or cheap:
            expected |= {name: usable[name] for name in cheap or list(usable)[:1]}
        if not expected and order.verify:
            raise blame(
                PreconditionFailed(
                    "source: gives no checksum to compare with; state one in the header Digest, or send"
                    " RequireChecksumVerification: false"
                ),
                "source",
            )
        return expected

    async def _get(
        self, start: int, stop: int | None, headers: Mapping[str, str] | None = None
    ) -> tuple[Response, Flow]:
        """A GET whose body waits in the flow. Raises for every answer but 200 and 206."""
        flow = Flow()
        part = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop else {}
        answer = await self._remote.ask(
            "GET",
            {**part, **(headers or {})},
            on_head=lambda head: flow if head.status in {200, 206} else None,
        )
        if answer.status not in {200, 206}:
            if answer.status == 416 and not start:  # the file is empty: then there is no range in it
                return await self._get(0, None, headers)
            raise await self._remote.refusal(answer, "GET")
        if answer.status == 206 and not part:
            answer.close()
            raise blame(OriginFailed("source: answered with a part where the whole was asked for"), "source")
        return answer, flow

    async def resume(self, at: int, stop: int | None, version: Version) -> tuple[Response, Flow]:
        """Go on reading at a byte.

        Raises:
            Replaced: the source has another version, or cannot tell: begin anew.
        """
        if not version.resumable:
            raise blame(Replaced("source: broke off, and tells no version by which to go on"), "source")
        match = {"If-Match": f'"{version.text}"'} if is_strong(version.text) else {}
        try:
            answer, flow = await self._get(at, stop, match)
        except PreconditionFailed as e:
            raise blame(Replaced(e.message), "source") from e
        found = content_range(answer.get("content-range"))
        whole = answer.status == 200 and at == 0 and answer.head.length == version.size
        right = whole or (
            found is not None and found[0] == at and found[1:] == (stop or found[1], version.size)
        )
        if not right or version_of(answer.head, version.size or 0) != version.text:
            answer.close()
            raise blame(Replaced("source: has another version of the file now"), "source")
        return answer, flow


def _usable(checksums: Mapping[str, str]) -> dict[str, str]:
    return {name: checksums[name] for name in (*_CHEAP, *COMPUTABLE) if name in checksums}

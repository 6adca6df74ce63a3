"""The passive side of a transfer: requests to it, whom credentials may reach, what its answers mean.

Source: rules W38, W39, W54, W58, W60, W61, W70 of the storage contract.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

from doma.core.checksum import read_digests
from doma.core.errors import (
    BadRequest,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    Replaced,
    StorageFull,
    StorageUnavailable,
    TimedOut,
    TooManyRequests,
)
from doma.core.url import origin_of, redacted
from doma.doors.tpc_order import Order
from doma.doors.tpc_progress import Progress, Side, blame
from doma.net.client import RangeClient, Response
from doma.net.sinks import Head, Piece, Sink
from doma.store.http_status import refused
from doma.store.http_trust import RemoteGuard

HOPS = 10
PAUSES = (0.2, 2.0, 8.0)
"""Seconds before each further attempt."""
POLL = 5.0
"""Seconds between two questions for a digest that is being computed."""
PATIENCE = 60.0
"""Seconds for a digest, and one more for each :data:`RATE` bytes."""
RATE = 10 << 20

_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {502, 503, 504}
_DOUBTFUL = {404, 500} | _TRANSIENT
"""Answers that are asked for once more when the connection was a kept one."""
_PASSED_ON = (NotFound, Forbidden, LimitExceeded, PreconditionFailed, StorageFull, TooManyRequests, TimedOut)
"""Answers of the passive side that are ours too; the others become 502."""

Body = bytes | Callable[[], AsyncIterator[Piece]]


@dataclass(frozen=True, slots=True)
class Remotes:
    """What all transfers share to reach other servers."""

    client: RangeClient
    guard: RemoteGuard
    forward: frozenset[tuple[str, str]] = frozenset()
    """Origins between which a redirect keeps the credentials."""


class Remote:
    """The passive side of one transfer."""

    def __init__(self, remotes: Remotes, order: Order, progress: Progress) -> None:
        self._remotes = remotes
        self._order = order
        self._progress = progress
        self.side: Side = "destination" if order.push else "source"

    async def ask(
        self,
        method: str,
        headers: Mapping[str, str] | None = None,
        *,
        body: Body | None = None,
        on_head: Callable[[Head], Sink | None] | None = None,
    ) -> Response:
        """Send a request along all redirects; any other answer is the caller's to judge.

        Args:
            method: In capitals.
            headers: Besides those that the client ordered.
            body: A whole one, or what makes it anew for each hop, asked once the server is ready.
            on_head: Chooses where the answer's body goes.

        Raises:
            DomaError: no answer, or an address or redirect that is refused.
        """
        url, fields, fresh = self._order.remote, {**self._order.fields}, False
        for _ in range(HOPS + 1):
            self._guard(url)
            try:
                answer = await self._remotes.client.request(
                    method,
                    url,
                    {**fields, **(headers or {})},
                    body() if callable(body) else body,
                    expect=callable(body),
                    on_head=on_head,
                    follow=False,
                    connected=self._progress.connected,
                    fresh=fresh,
                )
            except Forbidden as e:
                raise self._forbidden(e) from e
            except DomaError as e:
                raise self._failed(e) from e
            doubtful = method in {"GET", "HEAD"} and answer.reused and answer.status in _DOUBTFUL
            if doubtful and not fresh:  # XRootD 5.5 mixes up requests on one connection now and then
                answer.close()
                fresh = True
                continue
            if answer.status not in _REDIRECTS or not answer.get("location"):
                return answer
            answer.close()
            url, fields = self._next(url, answer, fields)
        raise self._wrong(f"more than {HOPS} redirects; its set-up is circular")

    async def refusal(self, answer: Response, method: str) -> DomaError:
        """The error that an unwelcome answer stands for, as our client shall see it."""
        error = await refused(answer, self.side, self._order.secret, method=method)
        status = answer.status
        if status == 401:
            error = Forbidden(error.message, status=status)  # 401 would ask our client for its own token
        elif not isinstance(error, _PASSED_ON) or type(error).http != status:
            kind = StorageUnavailable if status in _TRANSIENT else OriginFailed
            error = kind(error.message, retry_after=error.retry_after, status=status)
        return blame(error, self.side)

    async def digests(self, size: int | None, waiting: Callable[[], None]) -> tuple[Head, dict[str, str]]:
        """What the passive side says about its file when it is asked by HEAD; it may have to compute first.

        Args:
            size: Bytes of the file, if known: more of them take longer.
            waiting: Called when the answer will take a while.

        Raises:
            DomaError: it does not tell.
        """
        limit = PATIENCE + (size or 0) / RATE
        now = asyncio.get_running_loop().time
        end = now() + limit
        while True:
            async with await self.ask("HEAD", want(self._order)) as answer:
                if answer.status == 200:
                    return answer.head, digests_of(answer.head)
                computing = answer.status == 202 or (answer.status == 503 and answer.get("retry-after"))
                if not computing:
                    raise await self.refusal(answer, "HEAD")
            if now() + POLL > end:
                raise blame(TimedOut(f"{self.side}: gave no checksum within {limit:g} s"), self.side)
            self._progress.doing = f"waiting for the checksum of the {self.side}"
            waiting()
            await asyncio.sleep(POLL)

    async def again(self, error: DomaError) -> None:
        """Wait before another attempt, or raise the error if none is due.

        Attempts are due after a new version, and when this side was lost or answered 502, 503 or 504.
        """
        tries, detail = self._progress.attempts, error.detail
        lost = detail.get("transient") or detail.get("status") in _TRANSIENT
        if (
            tries > len(PAUSES)
            or detail.get("side") != self.side
            or not (lost or isinstance(error, Replaced))
        ):
            raise error
        self._progress.attempts = tries + 1
        self._progress.doing = f"waiting to try again: {error.message}"
        await asyncio.sleep(PAUSES[tries - 1])
        self._progress.doing = "transferring"

    def _guard(self, url: str) -> None:
        try:
            self._remotes.guard.check(url)
        except DomaError as e:
            raise self._forbidden(e) from e

    def _next(self, url: str, answer: Response, fields: dict[str, str]) -> tuple[str, dict[str, str]]:
        """URL and headers after a redirect: what the client sent along is for one origin only (W60)."""
        try:
            new = urljoin(url, answer.get("location"))
            old, there = origin_of(url), origin_of(new)
        except (BadRequest, ValueError) as e:
            raise self._wrong("redirects to something that is no URL") from e
        if old.scheme == "https" and there.scheme != "https":
            raise self._wrong(f"redirects from https to {there}; that is refused")
        if there != old and (str(old), str(there)) not in self._remotes.forward:
            fields = {}
        return new, fields

    def _forbidden(self, error: DomaError) -> DomaError:
        hint = "" if "key" in error.detail else " with the key tpc.allow"
        known = Forbidden if isinstance(error, Forbidden) else OriginFailed
        return blame(known(f"{self.side}: {error.message}{hint}", key="tpc.allow"), self.side)

    def _failed(self, error: DomaError) -> DomaError:
        # What the client's URL or headers got wrong stays its fault, all else is the other side's.
        kind = OriginFailed if isinstance(error, StorageUnavailable) else type(error)
        again = isinstance(error, StorageUnavailable | OriginFailed)
        return blame(kind(f"{self.side}: {error.message}", transient=again), self.side)

    def _wrong(self, what: str) -> DomaError:
        return blame(OriginFailed(f"{self.side}: {redacted(self._order.shown)}: {what}"), self.side)


def want(order: Order) -> dict[str, str]:
    """The headers that ask for checksums: adler32, and what the client named."""
    names = dict.fromkeys(("adler32", *order.digests))
    repr_names = ["adler" if name == "adler32" else name for name in names if name != "sha-1"]
    return {
        "Want-Digest": ",".join(names),
        "Want-Repr-Digest": ", ".join(f"{name}={9 - i}" for i, name in enumerate(repr_names)),
    }


def digests_of(head: Head) -> dict[str, str]:
    """Checksums out of an answer, also those of object stores."""
    fields = [*head.fields]
    for name in ("x-goog-hash", "x-amz-checksum-crc32c", "x-amz-checksum-sha256"):
        if value := head.get(name):
            prefix = name.removeprefix("x-amz-checksum-") + "=" if name.startswith("x-amz") else ""
            fields.append(("digest", prefix + value))
    return read_digests(fields)

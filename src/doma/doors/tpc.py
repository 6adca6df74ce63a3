"""HTTP third-party copy: this server moves a file between itself and another one, and tells how it goes.

A COPY is judged first (rights, conditions, limits), then the other side is asked. What goes wrong up to
there is a plain answer; from there on it is told in the stream of markers that answers the request. A
transfer lives as long as its request: a client that goes away ends it, and nothing of it is left.

Source: §6 of the storage contract (W51-W73).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from doma.core.config import Tpc
from doma.core.errors import (
    Cancelled,
    ConfigError,
    DomaError,
    TimedOut,
)
from doma.core.url import origin_of
from doma.doors.dav_call import Call, Receive
from doma.doors.tpc_firefly import Fireflies
from doma.doors.tpc_judge import Job, judge
from doma.doors.tpc_limits import Turns
from doma.doors.tpc_local import local
from doma.doors.tpc_progress import blame, last_lines
from doma.doors.tpc_pull import Pull
from doma.doors.tpc_push import Push
from doma.doors.tpc_remote import Remote, Remotes
from doma.doors.tpc_source import Source
from doma.net.client import RangeClient
from doma.net.pool import Limits
from doma.store.http_trust import RemoteGuard, context_of
from doma.store.protocol import Stat

log = logging.getLogger(__name__)

EARLY = 1.0
"""Seconds within which what goes wrong is a plain answer."""
QUICK = 0.25
"""Seconds that a transfer under way may take to be told of in one go, its end included."""
EVERY = 5.0
"""Seconds between markers."""
AGAIN = 5.0
"""Seconds that a kept connection may be silent before a fresh one is tried."""

_STREAM = [(b"content-type", b"text/perf-marker-stream"), (b"cache-control", b"no-store")]


class ThirdParty:
    """Answers COPY with another server; one for all doors of a process.

    Args:
        config: Its section.
        authorities: Files and folders of CA certificates to trust besides the system's.
        clock: Unix seconds.
        every: Seconds between markers.
    """

    def __init__(
        self,
        config: Tpc,
        authorities: Iterable[str | Path] = (),
        *,
        clock: Callable[[], float] = time.time,
        every: float = EVERY,
    ) -> None:
        self._config = config
        self._clock, self._every = clock, every
        self._turns = Turns(config.per_issuer, config.per_host, config.waiting)
        self._fireflies = Fireflies(config.scitags)
        self._by_head: dict[str, None] = {}
        guard = RemoteGuard(config.allow, config.deny, plain=config.plain_http)
        limits = Limits(
            connect=30,
            first_byte=120,
            first_again=AGAIN,
            idle=config.stall,
            go_on=5,
            connections=8 * config.per_host,
        )
        client = RangeClient(context_of(*authorities, *filter(None, [config.ca_file])), limits, guard)
        self._remotes = Remotes(client, guard, _pairs(config))
        self.ended: dict[tuple[str, ...], float] = {}
        """Transfers by ``pull``, ``push`` or ``local`` and by ``done``, ``failed`` or ``cancelled``."""
        self.moved: dict[tuple[str, ...], float] = {}
        """Bytes of those that were done, by the same modes."""

    async def close(self) -> None:
        """Close all connections to others."""
        await self._remotes.client.close()

    async def __call__(self, call: Call) -> None:
        """Answer a COPY.

        Raises:
            DomaError: it was refused before anything went out.
        """
        job = await judge(call, self._clock())
        if job.there is None:
            self._turns.check(job.issuer, job.order.host)
            if self._turns.would_wait(job.issuer, job.order.host):
                job.progress.doing = "queued"
                job.start()
        self._tell(job, "copy.started")
        work = asyncio.create_task(self._work(job))
        gone = asyncio.create_task(_gone(call.receive))
        started = asyncio.create_task(job.started.wait())
        error: DomaError | None = Cancelled(f"{call.shown}: the client went away")
        try:
            error = await self._answer(job, work, gone, started)
        except DomaError as e:
            error = e
            raise
        finally:
            tasks: set[asyncio.Task[Any]] = {work, gone, started}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._close(job, work, error)

    async def _work(self, job: Job) -> Stat:
        """Wait for the turn, transfer."""
        order, progress, here = job.order, job.progress, job.here
        if job.there is not None:
            job.start()
            read = here if order.push else job.there
            assert job.target is not None
            return await local(order, read.endpoint.store, read.path, job.target, progress)
        remote = Remote(self._remotes, order, progress)
        try:
            async with self._turns.turn(job.issuer, order.host):
                if job.target is not None:
                    source = Source(order, remote, progress, job.start, self._by_head)
                    return await Pull(order, remote, source, job.target, progress, job.start).run()
                return await Push(order, remote, here.endpoint.store, here.path, progress, job.start).run()
        except DomaError as e:
            raise order.located(e) from e.__cause__

    # --- the answer ---

    async def _answer(
        self,
        job: Job,
        work: "asyncio.Task[Stat]",
        gone: "asyncio.Task[None]",
        started: "asyncio.Task[Any]",
    ) -> DomaError | None:
        """Tell the client; what went wrong, if anything did.

        Raises:
            DomaError: it went wrong before the stream began.
        """
        call, every = job.call, self._every
        both: set[asyncio.Task[Any]] = {work, gone}
        await _first(both | {started}, EARLY)
        if work.done() and not job.started.is_set():
            work.result()
        self._firefly(job, "start")
        await _first(both, QUICK)
        cancelled = Cancelled(f"{call.shown}: the client went away after {job.progress.bytes} bytes")
        pace = _Pace(job.order.min_rate or self._config.min_rate, self._config.rate_window)
        with suppress(OSError):  # nobody listens any more
            await call.send({"type": "http.response.start", "status": 202, "headers": _STREAM})
            while not (work.done() or gone.done()):
                await _send(call, job.progress.marker(self._clock()))
                await _first(both, every)
                if not work.done() and pace.too_slow(asyncio.get_running_loop().time(), job.progress.bytes):
                    error = blame(TimedOut(f"too slow: less than {pace.floor} bytes/s"), "transfer")
                    work.cancel()
                    await asyncio.wait({work})
                    await _send(call, last_lines(error), more=False)
                    return error
            if not work.done():
                return cancelled
            failure = _failure(work)
            self._close(job, work, failure)  # whoever reads the last line finds the record
            await _send(call, job.progress.marker(self._clock()) + last_lines(failure), more=False)
            return failure
        return cancelled if not work.done() else _failure(work)

    # --- the record ---

    def _close(self, job: Job, work: "asyncio.Task[Stat]", error: DomaError | None) -> None:
        """Record how it ended. Idempotent."""
        if job.closed:
            return
        job.closed = True
        self._firefly(job, "end")
        mode = "local" if job.there is not None else "push" if job.order.push else "pull"
        done = not work.cancelled() and work.exception() is None
        outcome = "done" if done else "cancelled" if isinstance(error, Cancelled) else "failed"
        self.ended[mode, outcome] = self.ended.get((mode, outcome), 0) + 1
        if not done:
            code = error.code if error else "internal"
            self._tell(job, "copy.failed", error=code, message=error.message[:300] if error else "")
            return
        stat, site = work.result(), job.call.site
        self.moved[mode,] = self.moved.get((mode,), 0) + stat.size
        read = job.here if job.order.push else job.there
        if read is not None and site.usage is not None:
            site.usage.read(read.endpoint.name, job.call.identity, stat.size)
        if job.target is not None:
            facts: dict[str, Any] = {"size": stat.size}
            if "adler32" in stat.checksums:
                facts["adler32"] = stat.checksums["adler32"]
            to = job.there if job.order.push and job.there is not None else job.here
            job.call.tell("file.landed", to.endpoint, to.path, **facts)
        sums = {**stat.checksums, **job.progress.checksums}
        self._tell(job, "copy.finished", checksum=sums.get("adler32", ""), version=stat.version)

    def _tell(self, job: Job, kind: str, **more: Any) -> None:
        """Emit and log one step of the record."""
        order, progress, call = job.order, job.progress, job.call
        ours, other = job.here.shown, job.there.shown if job.there is not None else order.shown
        source, destination = (ours, other) if order.push else (other, ours)
        facts = {"source": source, "destination": destination, "mode": "push" if order.push else "pull"}
        if order.info:
            facts["client_info"] = order.info
        counts: dict[str, Any] = {"scitag": order.scitag} if order.scitag else {}
        if kind != "copy.started":
            seconds = round(self._clock() - job.began, 3)
            counts |= {"bytes": progress.bytes, "seconds": seconds, "attempts": progress.attempts}
            log.info("%s %s -> %s %s %s", kind, source, destination, {**counts, **more}, order.info)
        call.tell(kind, call.endpoint, call.path, **facts, **counts, **more)

    def _firefly(self, job: Job, state: str) -> None:
        order, progress = job.order, job.progress
        if order.scitag and progress.peers:
            peer, own = next(iter(progress.peers.items()))
            count = {"sent" if order.push else "received": progress.bytes}
            self._fireflies.send(
                state, order.scitag, (own, peer), began=job.began, now=self._clock(), **count
            )


class _Pace:
    """Watches that a transfer keeps its rate over a window of time."""

    def __init__(self, floor: int, window: float) -> None:
        self.floor, self._window = floor, window
        self._seen: deque[tuple[float, int]] = deque()

    def too_slow(self, now: float, size: int) -> bool:
        """Take a look; whether the whole window was too slow."""
        self._seen.append((now, size))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._window:
            self._seen.popleft()
        then, before = self._seen[0]
        return bool(self.floor) and now - then >= self._window and size - before < self.floor * (now - then)


async def _send(call: Call, text: str, *, more: bool = True) -> None:
    body = text.encode("latin-1", "replace")
    await call.send({"type": "http.response.body", "body": body, "more_body": more})


async def _first(tasks: "set[asyncio.Task[Any]]", timeout: float) -> None:
    """Wait until one of them is done, but not for longer than that."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _failure(work: "asyncio.Task[Stat]") -> DomaError | None:
    error = work.exception()
    if error is None or isinstance(error, DomaError):
        return error
    log.error("a transfer failed", exc_info=error)
    return DomaError("internal error; the server's log has the cause")


def _pairs(config: Tpc) -> frozenset[tuple[str, str]]:
    try:
        return frozenset((str(origin_of(a)), str(origin_of(b))) for a, b in config.forward_credentials)
    except DomaError as e:
        raise ConfigError(f"tpc.forward_credentials: {e.message}") from e

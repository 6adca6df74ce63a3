"""One attempt at one file: take over what is known, else compute it; publish; record.

The result is readable before its row is visible, and the row and the counters change together. Whatever
stops in between leaves a claim that runs out; a late word of this attempt is refused by its number.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from doma.auth.redact import blanked
from doma.columns import cache_repo, work_repo
from doma.columns.cache_repo import Asked, Cached
from doma.columns.flights import Flights
from doma.columns.gather import Gathered
from doma.columns.model import Grant, Outcome, Pool, Progress, Task, TokenSource
from doma.columns.naming import object_name
from doma.columns.publish import copy, put
from doma.columns.remote_places import Road
from doma.columns.work_repo import Job, Published
from doma.core.config import Columns
from doma.core.errors import Cancelled, DomaError, LimitExceeded, NotFound, PreconditionFailed
from doma.db.engine import Database
from doma.store.protocol import Stat, Store

if TYPE_CHECKING:
    from doma.columns.datasets import Datasets

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a file is tried when its trouble may pass."""
BEGUN = 20
"""How often a file is begun at most, if whoever had it was killed each time."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What attempts work with."""

    db: Database
    gathered: Gathered
    results: Store
    pool: Pool
    tokens: TokenSource
    config: Columns
    work: Path
    """Directory of this process for results being written."""
    ca_file: str
    allow: tuple[str, ...]
    clock: Callable[[], float]
    flights: Flights
    datasets: "Datasets | None"
    road: Road
    sandbox: Callable[[], Awaitable[str]]
    """Tells how python functions are isolated; empty: not at all, they are refused."""

    async def task(self, codegen: str, selection: str, format_: str, url: str, token: str) -> Task:
        """A task with the limits of the configuration, a check as long as it has no output."""
        c, sandbox = self.config, ""
        timeout = c.file_timeout
        if codegen == "python":
            sandbox, timeout = await self.sandbox(), max(timeout, c.python_timeout + 30)
        elif (container := c.containers.get(codegen)) is not None:  # type: ignore[call-overload]
            sandbox, timeout = container.model_dump_json(), max(timeout, container.timeout + 60)
        return Task(
            url, selection, "", token, codegen, format_, step=c.step, ca_file=self.ca_file, allow=self.allow,
            timeout=timeout, sandbox=sandbox,
        )  # fmt: skip

    async def places(self, grant: Grant, urls: Sequence[str]) -> list[tuple[str, str]]:
        """URLs, each with the token that its host may see."""
        return [(url, await self.tokens.token(grant, url)) for url in urls]


class Attempt:
    """A claimed file on its way.

    Args:
        job: The claim.
        shop: What it works with.
    """

    def __init__(self, job: Job, shop: Workshop) -> None:
        self.job, self._shop = job, shop
        self.progress = Progress()
        self.idle = False
        """It waits for another request that computes the same; it needs no worker."""
        self.begun: float | None = None
        """When the computation began, by the event loop's clock; None: it does not run."""
        self.hedged = False
        self.last = False
        """It ended its request."""
        self.took: float | None = None
        """Seconds in the worker."""
        self._nudge = asyncio.Event()
        self._outputs: list[Path] = []

    def hedge(self) -> None:
        """Begin a second computation beside the one that takes so long; the first to finish counts."""
        self.hedged = True
        self._nudge.set()

    async def run(self) -> float | None:
        """Whatever comes of it; seconds after which the file is to be tried again, None if it is not."""
        job = self.job
        try:
            await self._deliver()
        except Cancelled:
            log.info("columns: %s is no longer ours", job.url)
        except DomaError as e:
            log.info("columns: %s, attempt %d: %s", job.url, job.attempt, e)
            return await self._fail(e)
        finally:
            for output in self._outputs:
                output.unlink(missing_ok=True)
        return None

    async def _fail(self, e: DomaError) -> float | None:
        job, shop, now = self.job, self._shop, self._shop.clock()
        reason, tries = blanked(e.message), job.tries + 1
        fresh: tuple[str, ...] | None = None
        if job.dataset is not None and shop.datasets is not None and _is_gone(e) and tries < ATTEMPTS:
            found = await shop.datasets.again(job.dataset, job.url, job.replicas)
            fresh = None if found is None else (found.url, *found.replicas)
        if fresh is not None or (e.retry != "no" and tries < ATTEMPTS):
            pause = 0.0 if fresh else e.retry_after or 0.2 * 4 ** (tries - 1)
            back = partial(work_repo.again, job=job, reason=reason, now=now, not_before=now + pause)
            await shop.gathered.run(partial(back, replicas=fresh))
            return pause
        text = str(e.detail.get("log", ""))[-65536:]
        state = await shop.gathered.run(partial(work_repo.failed, job=job, reason=reason, now=now, log=text))
        self.last = state is not None and state.final
        return None

    async def _deliver(self) -> None:
        job, shop = self.job, self._shop
        if job.attempt > BEGUN:
            raise LimitExceeded(f"{job.url}: begun {BEGUN} times and never ended; leave out this file")
        try:
            known = await shop.flights.before(job.key, self._known, self._waits)
            with shop.flights.lead(job.key):
                result = await self._made(known)
                state = await shop.gathered.each(work_repo.done, (job, result, shop.clock()))
        except (asyncio.CancelledError, Cancelled):  # every other end is recorded, and this with it
            await shop.gathered.each(cache_repo.end_lead, (job.key, job.holder), quiet=True)
            raise
        if state is None:
            raise Cancelled(f"{job.url}: another attempt has this file")
        self.last, self.took = state.final, result.outcome.seconds

    def _waits(self, idle: bool) -> None:
        self.idle = idle

    async def _known(self, lead: bool) -> tuple[list[Cached], bool]:
        """What the cache has; if it has nothing, whether this process is the one to compute it."""
        job, shop, now = self.job, self._shop, self._shop.clock()
        urls = shop.road.places((job.url, *job.replicas))
        asked = Asked(
            job.question, urls, now - shop.config.cache_age, now, job.key if lead else "", job.holder,
            now + shop.config.lease,
        )  # fmt: skip
        return await shop.gathered.each(cache_repo.known_or_led, asked, quiet=True)

    async def _made(self, known: Sequence[Cached]) -> Published:
        """The result in the store: a known one of the input's version, else a new one."""
        job, shop = self.job, self._shop
        name = object_name(job.url, job.question.format)
        path = f"/{job.request}/{name}"
        outcome, output = await self._computed(known)
        if outcome.cached:
            place = job.question.of(outcome.url or job.url)
            hits = [k for k in known if (k.input, k.version) == (place, outcome.version)]
            if hits and (stat := await self._taken_over(hits[0], path)) is not None:
                same = replace(outcome, rows=hits[0].events, bytes=hits[0].bytes, events=hits[0].entries)
                return Published(name, path, stat.version, same, hits[0])
            outcome, output = await self._computed([])
        stat = await put(shop.results, path, output, self._ours)
        return Published(name, path, stat.version, outcome)

    async def _computed(self, known: Sequence[Cached]) -> tuple[Outcome, Path]:
        """What a worker makes of the file; if that takes very long, the quicker one of two workers."""
        job, shop = self.job, self._shop
        urls = shop.road.places((job.url, *job.replicas))
        turn = job.tries % len(urls)
        places = await shop.places(job.grant, urls[turn:] + urls[:turn])
        question = job.question
        task = await shop.task(question.codegen, job.selection, question.format, *places[0])
        task = replace(task, known=tuple(k.version for k in known))
        races: dict[asyncio.Task[Outcome], Path] = {}

        def start(order: list[tuple[str, str]]) -> None:
            output = shop.work / f"{job.file}-{job.attempt}-{len(self._outputs)}"
            self._outputs.append(output)
            (url, token), *rest = order
            flight = shop.road.beside(url)
            mine = replace(
                task, url=url, token=token, replicas=tuple(rest), output=str(output), flight=flight
            )
            races[asyncio.create_task(shop.pool.run(mine, self._seen))] = output

        start(places)
        self.begun = asyncio.get_running_loop().time()
        try:
            return await self._first(races, partial(start, places[1:] + places[:1]))
        finally:
            self.begun = None
            for race in races:
                race.cancel()
            await asyncio.gather(*races, return_exceptions=True)

    async def _first(
        self, races: dict[asyncio.Task[Outcome], Path], second: Callable[[], None]
    ) -> tuple[Outcome, Path]:
        """The first success; if none succeeds, the last error."""
        nudge = asyncio.create_task(self._nudge.wait())
        try:
            while True:
                ended, _ = await asyncio.wait(
                    [*races, nudge] if not nudge.done() else races, return_when=asyncio.FIRST_COMPLETED
                )
                if nudge in ended:
                    second()
                for race in [r for r in races if r in ended]:
                    output = races[race]
                    if race.exception() is None or len(races) == 1:
                        return race.result(), output
                    del races[race]
        finally:
            nudge.cancel()
            await asyncio.gather(nudge, return_exceptions=True)

    def _seen(self, now: Progress) -> None:
        if now.events >= self.progress.events:
            self.progress = now

    async def _taken_over(self, hit: Cached, path: str) -> Stat | None:
        """Copy or link a cached result; None, and forgotten, if its object is not what it was."""
        try:
            return await copy(self._shop.results, hit.path, hit.object_version, path, self._ours)
        except (NotFound, PreconditionFailed):
            await self._shop.gathered.run(partial(cache_repo.forget, key=hit.key, path=hit.path))
            return None

    async def _ours(self) -> None:
        """Raises Cancelled unless this attempt still holds the file."""
        job, shop = self.job, self._shop
        held = job.file, job.attempt, shop.clock() + shop.config.lease
        if not await shop.gathered.each(work_repo.renew, held, quiet=True):
            raise Cancelled(f"{self.job.url}: another attempt has this file")


def _is_gone(e: DomaError) -> bool:
    """Whether the file may lie elsewhere by now."""
    return isinstance(e, NotFound) or e.retry == "elsewhere"

"""The claiming of files, their leases, and the watch over those that run.

This process claims files, runs them in the worker pool, publishes each result in the store, and only then
records and counts it in one transaction (:mod:`doma.columns.attempt`). A file that waits for a free worker
is claimed already, so that no worker waits for the database.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from doma.columns import cache_repo, work_repo
from doma.columns.attempt import Attempt, Workshop
from doma.columns.flights import Flights
from doma.columns.gather import Gathered
from doma.columns.model import Grant, Input, Outcome, Pool, Progress, TokenSource
from doma.columns.remote_places import Road
from doma.columns.upkeep import Upkeep
from doma.core.config import Columns
from doma.core.errors import DomaError
from doma.db.engine import Database
from doma.store.protocol import Store

if TYPE_CHECKING:
    from doma.columns.datasets import Datasets

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks for work of other processes."""
TIDY = 60.0
CHECK = 10.0
"""Seconds after which a check of names gives its worker back."""
TELL = 1.0
"""Seconds between two writes of how far files are."""
AHEAD, MOST = 2, 32
"""Files that are claimed for each worker, the running one included: from, to …"""
BUFFER = 0.5
"""… as many as keep a worker busy for this many seconds. Others' requests wait no longer than that for it."""
LINGER = 0.05
"""Seconds between two transactions when many files are on their way."""
IDLE = 256
"""Files that may wait for another request that computes the same."""
SLOW = 4.0
"""A file that takes this many times the median of its request is begun a second time …"""
SLOW_AT_LEAST = 5.0
"""… when it has run for this many seconds, and nothing else wants the worker."""


class Runner:
    """Claims files and runs them.

    Args:
        db: The database.
        results: Store of the results.
        pool: Workers; started and stopped with the runner.
        tokens: Mints read tokens for the inputs.
        config: The section of column delivery.
        work_dir: Directory for results being written.
        ca_file: CA bundle for https inputs.
        allow: Origins in private networks that may be read.
        clock: Unix seconds.
        datasets: Looks datasets up again when their files are gone.
        road: The way to inputs.
        sandbox: Tells how workers isolate python functions; empty: not at all.
    """

    def __init__(
        self,
        db: Database,
        results: Store,
        pool: Pool,
        tokens: TokenSource,
        config: Columns,
        *,
        work_dir: Path,
        ca_file: str,
        allow: tuple[str, ...],
        clock: Callable[[], float],
        datasets: "Datasets | None" = None,
        road: Road,
        sandbox: Callable[[], Awaitable[str]],
    ) -> None:
        # The process id tells a successor on this machine that the holder of a claim is dead.
        self._name = f"{socket.gethostname()[:60]}/{os.getpid()}/{secrets.token_hex(4)}"
        self._work = work_dir / self._name.replace("/", "-")
        self._db, self._pool, self._config, self._clock = db, pool, config, clock
        self._gathered = Gathered(db)
        self._shop = Workshop(
            db, self._gathered, results, pool, tokens, config, self._work, ca_file, allow, clock,
            Flights(self.wake), datasets, road, sandbox,
        )  # fmt: skip
        self._upkeep = Upkeep(self._shop)
        self._jobs: dict[int, tuple[Attempt, asyncio.Task[float | None]]] = {}
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._told: dict[tuple[int, int], Progress] = {}
        self._pace = BUFFER
        """Seconds that a file takes in a worker, of late."""
        self._spent = False
        """Nothing could be claimed the last time."""

    async def start(self) -> None:
        """Start the workers and take up what a killed predecessor left."""
        await asyncio.to_thread(self._tidy_work)
        holders = await self._db.look(work_repo.holders)
        dead = [h for h in holders if _is_dead(h, self._name)]
        if dead:
            count = await self._db.run(lambda tx: work_repo.release(tx, dead, self._clock()))
            log.info("columns: %d files of a killed predecessor go on", count)
        await self._upkeep.begin()
        await self._pool.start()
        turns = {self._pump: "claiming", self._hold: "keeping leases", self._watch: "watching",
                 self._tidy: "tidying up"}  # fmt: skip
        self._loops = [asyncio.create_task(self._forever(turn, what)) for turn, what in turns.items()]

    async def stop(self) -> None:
        """Stop in good order: running files are given back. Idempotent."""
        tasks = [*self._loops, *(t for _, t in self._jobs.values())]
        self._loops = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.stop()
        await self._gathered.close()
        with contextlib.suppress(DomaError):
            await self._db.run(lambda tx: work_repo.release(tx, [self._name], self._clock()))
        await asyncio.to_thread(shutil.rmtree, self._work, True)

    @property
    def changed(self) -> asyncio.Event:
        """Is set when the next request ends; ask for it before looking."""
        return self._changed

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    def notify(self) -> None:
        """A request has ended."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def drop(self, request: str) -> None:
        """Stop the work on a request that was cancelled."""
        for attempt, task in list(self._jobs.values()):
            if attempt.job.request == request:
                task.cancel()
        self.notify()

    async def check(self, grant: Grant, codegen: str, selection: str, file: Input) -> Outcome:
        """Compare the names of a selection with a file, without running it."""
        (url, token), *rest = await self._shop.places(
            grant, self._shop.road.places((file.url, *file.replicas))
        )
        task = await self._shop.task(codegen, selection, "parquet", url, token)
        return await self._pool.run(replace(task, replicas=tuple(rest), timeout=CHECK))

    async def remove(self, id_: str) -> None:
        """Remove a request and its objects."""
        await self._upkeep.remove(id_)

    async def _forever(self, turn: Callable[[], Awaitable[None]], what: str) -> None:
        """Repeat one turn of a loop; trouble of the database is said and waited out."""
        while True:
            try:
                await turn()
            except DomaError as e:
                log.warning("columns: %s: %s; trying again", what, e)
                await asyncio.sleep(1)

    async def _pump(self) -> None:
        """Claim when the workers run out of files, then wait for news."""
        self._wake.clear()
        idle = sum(attempt.idle for attempt, _ in self._jobs.values())
        active, slots = len(self._jobs) - min(idle, IDLE), self._pool.slots
        most = slots * max(AHEAD, min(MOST, int(BUFFER / self._pace)))
        if active <= most // 2:
            limit = most - active
            lease, now = self._config.lease, self._clock()
            jobs = await self._db.run(lambda tx: work_repo.take(tx, self._name, now, lease, limit))
            self._spent = len(jobs) < limit
            for job in jobs:
                attempt = Attempt(job, self._shop)
                task = asyncio.create_task(attempt.run())
                self._jobs[job.file] = (attempt, task)
                task.add_done_callback(partial(self._ended, job.file))
            self._gathered.linger = LINGER if len(self._jobs) > slots * AHEAD else 0.0
            if jobs:
                await asyncio.sleep(0)  # those that have to wait for others show it
                if any(self._jobs[j.file][0].idle for j in jobs if j.file in self._jobs):
                    return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._wake.wait()

    def _ended(self, file: int, task: asyncio.Task[float | None]) -> None:
        attempt, _ = self._jobs.pop(file)
        if attempt.took is not None:
            self._pace += 0.2 * (max(attempt.took, 0.001) - self._pace)
        if not task.cancelled():
            if (error := task.exception()) is not None:
                log.error("columns: a file's work ended in an unexpected way", exc_info=error)
            elif (pause := task.result()) is not None:
                asyncio.get_running_loop().call_later(pause + 0.01, self._wake.set)
        self._wake.set()
        if attempt.last:
            self.notify()

    async def _hold(self) -> None:
        """Keep the leases of running files; drop the work on those that are no longer ours."""
        held = {f: attempt.job.attempt for f, (attempt, _) in self._jobs.items()}
        if held:
            until = self._clock() + self._config.lease
            leases = [(file, attempt, until) for file, attempt in held.items()]
            await self._gathered.run(partial(cache_repo.keep_lead, owner=self._name, until=until))
            ours = await self._gathered.run(partial(work_repo.renew, held=leases))
            for file in (file for file, mine in zip(held, ours, strict=True) if not mine):
                found = self._jobs.get(file)
                if found is not None and found[0].job.attempt == held[file]:
                    found[1].cancel()
        await asyncio.sleep(self._config.lease / 3)

    async def _tidy(self) -> None:
        if await self._upkeep.turn():
            self.notify()
        await asyncio.sleep(TIDY)

    async def _watch(self) -> None:
        """Write how far files are, and begin those that take very long a second time."""
        await asyncio.sleep(TELL)
        now = {(f, a.job.attempt): a.progress for f, (a, _) in self._jobs.items()}
        news = {key: p for key, p in now.items() if p != self._told.get(key, Progress())}
        self._told = now
        if news:
            await self._gathered.run(partial(work_repo.advance, progress=news, now=self._clock()))
        await self._hedge()

    async def _hedge(self) -> None:
        """Give free workers the files that run far longer than others of their request did."""
        free = self._pool.slots - len(self._jobs)
        if free <= 0 or not self._spent:
            return
        time = asyncio.get_running_loop().time()
        for attempt, _ in list(self._jobs.values()):
            ran = 0.0 if attempt.begun is None else time - attempt.begun
            if attempt.hedged or ran < SLOW_AT_LEAST:
                continue
            waiting, took = await self._db.look(partial(work_repo.pace, request=attempt.job.request))
            if free > 0 and not waiting and len(took) >= 3 and ran > SLOW * statistics.median(took):
                log.info("columns: %s runs for %.0f s; begun a second time", attempt.job.url, ran)
                attempt.hedge()
                free -= 1

    def _tidy_work(self) -> None:
        """Remove what killed predecessors were writing."""
        base = self._work.parent
        base.mkdir(parents=True, exist_ok=True)
        self._work.mkdir(exist_ok=True)
        for left in base.iterdir():
            if left.is_dir() and _is_dead(left.name.replace("-", "/"), self._name):
                shutil.rmtree(left, ignore_errors=True)


def _is_dead(holder: str, me: str) -> bool:
    """Whether a process of this machine that held files is gone; of another machine only its lease tells."""
    try:
        host, pid, _ = holder.rsplit("/", 2)
        number = int(pid)
    except ValueError:
        return False
    mine_host, mine_pid, _ = me.rsplit("/", 2)
    if host.replace("-", "/") != mine_host.replace("-", "/") or holder == me:
        return False
    if str(number) == mine_pid:
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False

"""The running of claimed files, and the housekeeping around it.

This process claims files, runs them in the worker pool, publishes each result in the store, and only then
records and counts it in one transaction. Whatever stops in between leaves a claim that runs out; another
attempt takes the file, and the earlier one's late word is refused by its attempt number.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from doma.columns import repo
from doma.columns.model import Grant, Outcome, Pool, Task, TokenSource
from doma.columns.naming import object_name
from doma.columns.publish import copy, put
from doma.core.config import Columns
from doma.core.errors import Cancelled, DomaError, NotFound, PreconditionFailed
from doma.db.engine import Database
from doma.store.protocol import Stat, Store

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a file is tried when its trouble may pass."""
LOOK = 5.0
"""Seconds between two looks for work of other processes."""
TIDY = 60.0
CHECK = 10.0
"""Seconds after which a check of names gives its worker back."""


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
    ) -> None:
        self._db, self._results, self._pool, self._tokens = db, results, pool, tokens
        self._config, self._ca_file, self._allow, self._clock = config, ca_file, allow, clock
        # The process id tells a successor on this machine that the holder of a claim is dead.
        self._name = f"{socket.gethostname()[:60]}/{os.getpid()}/{secrets.token_hex(4)}"
        self._work = work_dir / self._name.replace("/", "-")
        self._jobs: dict[int, tuple[repo.Job, asyncio.Task[None]]] = {}
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the workers and take up what a killed predecessor left."""
        await asyncio.to_thread(self._tidy_work)
        holders = await self._db.look(repo.holders)
        dead = [h for h in holders if _is_dead(h, self._name)]
        if dead:
            count = await self._db.run(lambda tx: repo.release(tx, dead))
            log.info("columns: %d files of a killed predecessor go on", count)
        await self._pool.start()
        self._loops = [
            asyncio.create_task(self._forever(self._pump, "claiming")),
            asyncio.create_task(self._forever(self._hold, "keeping leases")),
        ]

    async def stop(self) -> None:
        """Stop in good order: running files are given back. Idempotent."""
        tasks = [*self._loops, *(t for _, t in self._jobs.values())]
        self._loops = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.stop()
        with contextlib.suppress(DomaError):
            await self._db.run(lambda tx: repo.release(tx, [self._name]))
        await asyncio.to_thread(shutil.rmtree, self._work, True)

    @property
    def busy(self) -> bool:
        """Whether every worker has a file."""
        return len(self._jobs) >= self._pool.slots

    @property
    def changed(self) -> asyncio.Event:
        """Is set at the next change of any request; ask for it before looking."""
        return self._changed

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    def drop(self, request: str) -> None:
        """Stop the work on a request that was cancelled."""
        for job, task in list(self._jobs.values()):
            if job.request == request:
                task.cancel()
        self._notify()

    async def check(self, grant: Grant, codegen: str, selection: str, url: str) -> Outcome:
        """Compare the names of a selection with a file, without running it."""
        token = await self._tokens.token(grant, url)
        task = replace(self._task(url, selection, "", token, ()), codegen=codegen, timeout=CHECK)
        return await self._pool.run(task)

    async def remove(self, id_: str) -> None:
        """Remove a request, its objects first: a crash in between leaves rows, and it is repeated."""
        with contextlib.suppress(NotFound):
            await self._results.delete(f"/{id_}", recursive=True)
        await self._db.run(lambda tx: repo.remove(tx, id_, self._clock()))

    def _task(self, url: str, selection: str, output: str, token: str, known: tuple[str, ...]) -> Task:
        c = self._config
        return Task(
            url, selection, output, token, known=known, step=c.step, ca_file=self._ca_file, allow=self._allow,
            timeout=c.file_timeout,
        )  # fmt: skip

    async def _forever(self, turn: Callable[[], Awaitable[None]], what: str) -> None:
        """Repeat one turn of a loop; trouble of the database is said and waited out."""
        while True:
            try:
                await turn()
            except DomaError as e:
                log.warning("columns: %s: %s; trying again", what, e)
                await asyncio.sleep(1)

    async def _pump(self) -> None:
        """Claim as many files as there are free workers, then wait for news."""
        self._wake.clear()
        free = self._pool.slots - len(self._jobs)
        if free > 0:
            lease, now = self._config.lease, self._clock()
            jobs = await self._db.run(lambda tx: repo.take(tx, self._name, now, lease, free))
            for job in jobs:
                task = asyncio.create_task(self._work_on(job))
                self._jobs[job.file] = (job, task)
                task.add_done_callback(partial(self._ended, job.file))
            if jobs:
                self._notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._wake.wait()

    def _ended(self, file: int, task: asyncio.Task[None]) -> None:
        self._jobs.pop(file, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("columns: a file's work ended in an unexpected way", exc_info=error)
        self._wake.set()
        self._notify()

    async def _hold(self) -> None:
        """Keep the leases of running files; drop the work on those that are no longer ours; tidy up."""
        held = {f: job.attempt for f, (job, _) in self._jobs.items()}
        if held:
            ours = await self._db.run(lambda tx: repo.renew(tx, held, self._clock(), self._config.lease))
            for file in held.keys() - ours:
                if file in self._jobs:
                    self._jobs[file][1].cancel()
        old = await self._db.look(lambda tx: repo.expired(tx, self._clock() - self._config.retention))
        for id_ in old:
            await self.remove(id_)
        await asyncio.sleep(min(TIDY, self._config.lease / 3))

    async def _work_on(self, job: repo.Job) -> None:
        """One attempt at one file, whatever comes of it."""
        output = self._work / f"{job.file}-{job.attempt}.parquet"
        try:
            await self._attempt(job, output)
        except Cancelled:
            log.info("columns: %s is no longer ours", job.url)
        except DomaError as e:
            log.info("columns: %s, attempt %d: %s", job.url, job.attempt, e)
            reason, now = e.message, self._clock()
            if e.retry != "no" and job.attempt < ATTEMPTS:
                await asyncio.sleep(e.retry_after or 0.2 * 4 ** (job.attempt - 1))
                await self._db.run(lambda tx: repo.again(tx, job, reason))
            else:
                await self._db.run(lambda tx: repo.failed(tx, job, reason, now))
        finally:
            output.unlink(missing_ok=True)

    async def _attempt(self, job: repo.Job, output: Path) -> None:
        known = await self._db.look(lambda tx: repo.known(tx, job.digest, job.url, job.format))
        token = await self._tokens.token(job.grant, job.url)
        versions = tuple(k.version for k in known)
        task = replace(
            self._task(job.url, job.selection, str(output), token, versions),
            codegen=job.codegen,
            format=job.format,
        )
        outcome = await self._pool.run(task)
        name = object_name(job.url)
        path = f"/{job.request}/{name}"
        stat: Stat | None = None
        if outcome.cached:
            (hit,) = [k for k in known if k.version == outcome.version][:1]
            stat = await self._taken_over(job, hit, path)
            if stat is None:
                outcome = await self._pool.run(replace(task, known=()))
            else:
                outcome = replace(outcome, rows=hit.events, bytes=hit.bytes)
        if stat is None:
            stat = await put(self._results, path, output, partial(self._ours, job))
        version, now = stat.version, self._clock()
        if not await self._db.run(lambda tx: repo.done(tx, job, name, path, version, outcome, now)):
            raise Cancelled(f"{job.url}: another attempt has this file")

    async def _taken_over(self, job: repo.Job, hit: repo.Cached, path: str) -> Stat | None:
        """Copy a cached result; None, and forgotten, if its object is not what it was."""
        try:
            return await copy(self._results, hit.path, hit.object_version, path, partial(self._ours, job))
        except (NotFound, PreconditionFailed):
            await self._db.run(lambda tx: repo.forget(tx, hit.key))
            return None

    async def _ours(self, job: repo.Job) -> None:
        """Raises Cancelled unless this attempt still holds the file."""
        held = {job.file: job.attempt}
        if not await self._db.run(lambda tx: repo.renew(tx, held, self._clock(), self._config.lease)):
            raise Cancelled(f"{job.url}: another attempt has this file")

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

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

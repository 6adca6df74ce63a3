"""What one can ask of column delivery, and the running of claimed files.

A request is rows. This process claims files, runs them in the worker pool, publishes each result in the
store, and only then records and counts it in one transaction. Whatever stops in between leaves a claim that
runs out; another attempt takes the file, and the earlier one's late word is refused by its attempt number.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from doma.columns import repo
from doma.columns.model import (
    FileResult,
    FileState,
    Grant,
    Outcome,
    Pool,
    Request,
    ResultUrl,
    Submission,
    Task,
    TokenSource,
    UrlSigner,
)
from doma.columns.naming import object_name
from doma.columns.plan import Plan, compile_text
from doma.columns.publish import copy, put
from doma.core.config import Columns
from doma.core.errors import (
    BadQuery,
    BadRequest,
    Cancelled,
    Conflict,
    DomaError,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
)
from doma.core.paths import encode
from doma.db.engine import Database
from doma.store.protocol import Stat, Store

log = logging.getLogger(__name__)

FORMATS = ("parquet",)
CODEGENS = ("uproot",)
MAX_FILES = 100_000
MAX_URL = 2000
ATTEMPTS = 3
"""How often a file is tried when its trouble may pass."""
LOOK = 5.0
"""Seconds between two looks for work of other processes."""
CHECK = 2.0
"""Seconds that submission may wait for the first file's names."""
TIDY = 60.0


class ColumnService:
    """Column delivery.

    Args:
        db: The database, migrated.
        results: Store of the results, ``/<request>/<object>``.
        results_url: https URL of the endpoint over that store.
        pool: Workers; started and stopped with the service.
        tokens: Mints read tokens for the inputs.
        sign: Mints the narrow token of a result URL.
        config: Our section.
        work_dir: Directory for results being written; local disk.
        ca_file: CA bundle for https inputs; empty: the system's.
        allow: Origins (``https://host:port``) in private networks that may be read; ``file://``: local paths.
        url_life: Seconds that result URLs are good for.
        clock: Unix seconds.
    """

    def __init__(
        self,
        db: Database,
        results: Store,
        results_url: str,
        pool: Pool,
        tokens: TokenSource,
        sign: UrlSigner,
        config: Columns,
        *,
        work_dir: Path,
        ca_file: str = "",
        allow: tuple[str, ...] = (),
        url_life: float = 24 * 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._results, self._results_url = db, results, results_url.rstrip("/")
        self._pool, self._tokens, self._sign, self._config = pool, tokens, sign, config
        self._ca_file, self._allow, self._url_life, self._clock = ca_file, allow, url_life, clock
        self._name = f"{socket.gethostname()[:60]}/{os.getpid()}/{secrets.token_hex(4)}"
        self._work = work_dir / self._name.replace("/", "-")
        self._jobs: dict[int, tuple[repo.Job, asyncio.Task[None]]] = {}
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._checks: set[asyncio.Task[Outcome]] = set()

    async def start(self) -> None:
        """Start the workers and take up what is unfinished, also that of a killed predecessor."""
        await asyncio.to_thread(self._tidy_work)
        self._work.mkdir(parents=True)
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
        """Stop in good order: running files go back and are done by whoever comes next. Idempotent."""
        tasks = [*self._loops, *(t for _, t in self._jobs.values()), *self._checks]
        self._loops = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.stop()
        with contextlib.suppress(DomaError):
            await self._db.run(lambda tx: repo.release(tx, [self._name]))
        await asyncio.to_thread(shutil.rmtree, self._work, True)

    # What one can ask.

    async def submit(self, grant: Grant, ask: Submission) -> str:
        """Accept a request and return its id; it runs on from here whatever happens to this process.

        Raises:
            BadQuery, UnknownColumn, BadRequest, LimitExceeded: what is wrong, and what would be right.
        """
        if ask.codegen not in CODEGENS:
            raise BadQuery(f"codegen: {ask.codegen!r} is not offered; there is {', '.join(CODEGENS)}")
        if ask.format not in FORMATS:
            raise BadQuery(f"result-format: {ask.format!r} is not offered; there is {', '.join(FORMATS)}")
        if len(ask.files) > MAX_FILES:
            raise LimitExceeded(f"file-list: {len(ask.files)} files; at most {MAX_FILES} in one request")
        for url in ask.files:
            _check_url(url, self._allow)
        files = tuple(dict.fromkeys(ask.files))
        plan = await asyncio.to_thread(compile_text, ask.selection)
        if files:
            await self._check(grant, ask.selection, files[0])
        id_ = str(uuid.uuid4())
        stored = Submission(
            ask.selection, files, ask.title, ask.did, ask.codegen, ask.format, ask.destination
        )
        await self._db.run(lambda tx: repo.add(tx, id_, grant, stored, plan.digest, self._clock()))
        self._wake.set()
        return id_

    async def explain(self, selection: str) -> Plan:
        """The plan of a selection."""
        return await asyncio.to_thread(compile_text, selection)

    async def status(self, owner: str, id_: str) -> Request:
        """A request of this owner; anybody else's does not exist. Raises NotFound."""
        found = await self._db.look(lambda tx: repo.get(tx, id_, owner))
        if found is None:
            raise NotFound(f"request {id_[:40]!r}: there is none of that id among yours")
        return found

    async def wait(self, owner: str, id_: str, seconds: float) -> Request:
        """The request when it has ended, or as it stands after some seconds."""
        ends = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._changed
            found = await self.status(owner, id_)
            left = ends - asyncio.get_running_loop().time()
            if found.state.final or left <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await changed.wait()

    async def list(self, owner: str, limit: int = 1000) -> Sequence[Request]:
        """An owner's requests, youngest first."""
        return await self._db.look(lambda tx: repo.listed(tx, owner, limit))

    async def results(self, owner: str, id_: str, later_than: int = -1) -> Sequence[FileResult]:
        """Finished files that became visible after an instant in microseconds. Raises NotFound."""
        await self.status(owner, id_)
        return await self._db.look(lambda tx: repo.results(tx, id_, later_than))

    async def urls(self, owner: str, id_: str, names: Sequence[str] | None = None) -> dict[str, ResultUrl]:
        """Result URLs that work by themselves; None: of all results so far.

        Raises:
            NotFound: no such request or result. Conflict: no result yet.
        """
        done = {r.name for r in await self.results(owner, id_) if r.state is FileState.DONE and r.name}
        wanted = sorted(done) if names is None else list(dict.fromkeys(names))
        if names is None and not done:
            raise Conflict(f"request {id_}: it has no result to download yet")
        expires = self._clock() + self._url_life
        urls: dict[str, ResultUrl] = {}
        for name in wanted:
            if name not in done:
                raise NotFound(f"request {id_}: it has no result {name[:300]!r}")
            path = f"/{id_}/{name}"
            token = self._sign(owner, path, expires)
            tail = f"?authz={token}" if token else ""
            urls[name] = ResultUrl(f"{self._results_url}{encode(path)}{tail}", {}, int(expires))
        return urls

    async def cancel(self, owner: str, id_: str) -> None:
        """Stop a request; what is done stays. Raises NotFound; BadRequest when it has ended already."""
        found = await self.status(owner, id_)
        if found.state.final:
            raise BadRequest(f"request {id_}: it is {found.state} already")
        await self._db.run(lambda tx: repo.cancel(tx, id_, self._clock()))
        for job, task in list(self._jobs.values()):
            if job.request == id_:
                task.cancel()
        self._notify()

    async def delete(self, owner: str, id_: str) -> None:
        """Remove a request and its results. Raises NotFound; BadRequest while it runs."""
        found = await self.status(owner, id_)
        if not found.state.final:
            raise BadRequest(f"request {id_}: it is {found.state}; cancel it first")
        await self._remove(id_)

    async def _remove(self, id_: str) -> None:
        # Objects first: a crash in between leaves rows, and the removal is repeated.
        with contextlib.suppress(NotFound):
            await self._results.delete(f"/{id_}", recursive=True)
        await self._db.run(lambda tx: repo.remove(tx, id_, self._clock()))

    async def _check(self, grant: Grant, selection: str, url: str) -> None:
        """Compare names with the first file if it opens quickly; other trouble is the file's, later."""
        if len(self._checks) >= self._pool.slots or len(self._jobs) >= self._pool.slots:
            return
        task = asyncio.create_task(self._names(grant, selection, url))
        self._checks.add(task)
        task.add_done_callback(self._checked)
        await asyncio.wait({task}, timeout=CHECK)
        if task.done() and not task.cancelled() and isinstance(error := task.exception(), BadQuery):
            raise error

    def _checked(self, task: asyncio.Task[Outcome]) -> None:
        self._checks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or of no interest any more

    async def _names(self, grant: Grant, selection: str, url: str) -> Outcome:
        token = await self._tokens.token(grant, url)
        return await self._pool.run(self._task(url, selection, "", token, ()))

    def _task(self, url: str, selection: str, output: str, token: str, known: tuple[str, ...]) -> Task:
        c = self._config
        return Task(url, selection, output, token, known, c.step, self._ca_file, self._allow, c.file_timeout)

    # The running of files.

    async def _forever(self, turn: Callable[[], object], what: str) -> None:
        """Repeat one turn of a loop; trouble of the database is said and waited out."""
        while True:
            try:
                await turn()  # type: ignore[misc]
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
            await self._remove(id_)
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
        known = await self._db.look(lambda tx: repo.known(tx, job))
        token = await self._tokens.token(job.grant, job.url)
        versions = tuple(k.version for k in known)
        outcome = await self._pool.run(self._task(job.url, job.selection, str(output), token, versions))
        name = object_name(job.url)
        path = f"/{job.request}/{name}"
        stat: Stat | None = None
        if outcome.cached:
            (hit,) = [k for k in known if k.version == outcome.version][:1]
            stat = await self._taken_over(job, hit, path)
            if stat is None:
                outcome = await self._pool.run(self._task(job.url, job.selection, str(output), token, ()))
            else:
                outcome = Outcome(hit.version, True, hit.events, hit.bytes, outcome.read, outcome.seconds)
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
        for left in base.iterdir():
            if left.is_dir() and _is_dead(left.name.replace("-", "/"), self._name):
                shutil.rmtree(left, ignore_errors=True)


def _check_url(url: str, allow: tuple[str, ...]) -> None:
    shown = ascii(url[:200])
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise BadRequest(
            f"file-list: {shown}: a URL has at most {MAX_URL} printable ASCII characters, no space"
        )
    try:
        parts = urlsplit(url)
        ok = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        ok, parts = False, urlsplit("")
    if parts.scheme == "file" and "file://" in allow:
        return
    if parts.scheme not in {"https", "http"} or not ok:
        raise BadRequest(f"file-list: {shown}: only https:// and http:// files can be read")
    if parts.username is not None:
        raise BadRequest("file-list: a URL must not hold a user name or password; the token is used")


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

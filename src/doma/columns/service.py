"""What one can ask of column delivery: submit, look, wait, fetch, cancel, delete.

A request is rows, committed before it is answered; :mod:`doma.columns.runner` does the work.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from doma.columns import repo
from doma.columns.model import (
    FileResult,
    FileState,
    Grant,
    Outcome,
    Overview,
    Pool,
    Request,
    ResultUrl,
    Submission,
    TokenSource,
    UrlSigner,
)
from doma.columns.overview import overview
from doma.columns.query import CODEGENS, Query, compile_query
from doma.columns.runner import Runner
from doma.columns.sink import FORMATS
from doma.core.config import Columns
from doma.core.errors import BadQuery, BadRequest, Conflict, LimitExceeded, NotFound
from doma.core.paths import encode
from doma.db.engine import Database
from doma.store.protocol import Store

MAX_FILES = 100_000
MAX_URL = 2000
CHECK = 2.0
"""Seconds that submission may wait for the first file's names."""
DAY = 24 * 3600.0


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
        self._db, self._results_url, self._sign = db, results_url.rstrip("/"), sign
        self._slots, self._allow, self._url_life, self._clock = config.workers, allow, url_life, clock
        self._runner = Runner(
            db, results, pool, tokens, config, work_dir=work_dir, ca_file=ca_file, allow=allow, clock=clock
        )
        self._checks: set[asyncio.Task[Outcome]] = set()

    async def start(self) -> None:
        """Start the workers and take up what is unfinished, also that of a killed predecessor."""
        await self._runner.start()

    async def stop(self) -> None:
        """Stop in good order: running files go back and are done by whoever comes next. Idempotent."""
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        await self._runner.stop()

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
        query = await asyncio.to_thread(compile_query, ask.codegen, ask.selection)
        if files:
            await self._check(grant, ask, query, files[0])
        id_ = str(uuid.uuid4())
        stored = Submission(
            ask.selection, files, ask.title, ask.did, ask.codegen, ask.format, ask.destination
        )
        await self._db.run(lambda tx: repo.add(tx, id_, grant, stored, query.digest, self._clock()))
        self._runner.wake()
        return id_

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
            changed = self._runner.changed
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

    async def overview(self, limit: int = 10) -> Overview:
        """Everybody's requests, for operators only."""
        return await self._db.look(lambda tx: overview(tx, self._clock() - DAY, limit))

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
        self._runner.drop(id_)

    async def delete(self, owner: str, id_: str) -> None:
        """Remove a request and its results. Raises NotFound; BadRequest while it runs."""
        found = await self.status(owner, id_)
        if not found.state.final:
            raise BadRequest(f"request {id_}: it is {found.state}; cancel it first")
        await self._runner.remove(id_)

    async def _check(self, grant: Grant, ask: Submission, query: Query, url: str) -> None:
        """Compare names with the first file if it opens quickly; other trouble is the file's, later."""
        if await self._db.look(lambda tx: repo.known(tx, query.digest, url, ask.format)):
            return  # the same question was answered from some version of this file: its names exist
        if len(self._checks) >= self._slots or self._runner.busy:
            return
        task = asyncio.create_task(self._runner.check(grant, ask.codegen, ask.selection, url))
        self._checks.add(task)
        task.add_done_callback(self._checked)
        await asyncio.wait({task}, timeout=CHECK)
        if task.done() and not task.cancelled() and isinstance(error := task.exception(), BadQuery):
            raise error

    def _checked(self, task: asyncio.Task[Outcome]) -> None:
        self._checks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or of no interest any more


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

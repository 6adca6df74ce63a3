"""What one can ask of column delivery: submit, look, wait, fetch, cancel, delete.

A request is rows, committed before it is answered; :mod:`doma.columns.runner` does the work.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from doma.columns import cache_repo, dataset_repo, repo
from doma.columns.cache_repo import Question
from doma.columns.dataset_tables import datasets as known
from doma.columns.finder import Lookup
from doma.columns.model import (
    FileResult,
    FileState,
    Grant,
    Input,
    Outcome,
    Overview,
    Pool,
    Progressed,
    Request,
    ResultUrl,
    State,
    Submission,
    TokenSource,
    UrlSigner,
)
from doma.columns.naming import object_name
from doma.columns.overview import overview
from doma.columns.query import CODEGENS, compile_query
from doma.columns.remote import check_url
from doma.columns.remote_places import Road
from doma.columns.runner import Runner
from doma.columns.sink import FORMATS
from doma.core.config import Columns
from doma.core.errors import BadQuery, BadRequest, Conflict, LimitExceeded, NotFound, TooManyRequests
from doma.core.paths import encode
from doma.core.url import redacted
from doma.db.engine import Database
from doma.store.protocol import Store

if TYPE_CHECKING:
    from doma.columns.datasets import Datasets
    from doma.columns.sandbox_run import Isolation

MAX_FILES = 100_000
CHECK = 2.0
"""Seconds that submission may wait for the first file's names."""
CHECKS = 16
"""Checks of names at once; further submissions are accepted unchecked."""
LOOK = 2.0
"""Seconds between two looks at a request that somebody waits for, when no news of an end comes."""
SOON = 5.0
"""Seconds after the start until it is tried whether functions can be isolated."""
LISTED = 1000
"""Requests of one list."""
GLANCED = 10
"""Requests that operators see."""
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
        datasets: Resolves data identifiers; started and stopped with the service. None: file lists only.
        road: The way to inputs.
        isolation: Finds out how python functions can be isolated, in a thread at the start; None, or one that
            finds nothing: they are not offered.
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
        datasets: "Datasets | None" = None,
        road: Road | None = None,
        isolation: "Callable[[], Isolation | None] | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._results_url, self._sign = db, results_url.rstrip("/"), sign
        self._allow, self._url_life, self._clock = allow, url_life, clock
        self._unfinished = config.unfinished
        self._datasets, self._isolation, self._containers = datasets, isolation, config.containers
        self._finding: asyncio.Task[Isolation | None] | None = None
        self._trying: asyncio.Task[None] | None = None
        self._runner = Runner(
            db, results, pool, tokens, config, work_dir=work_dir, ca_file=ca_file, allow=allow, clock=clock,
            datasets=datasets, road=road or Road(), sandbox=self._sandbox,
        )  # fmt: skip
        self._checks: set[asyncio.Task[Outcome]] = set()
        if datasets is not None:
            datasets.after.extend([self._runner.wake, self._runner.notify])

    async def start(self) -> None:
        """Start the workers and take up what is unfinished, also that of a killed predecessor."""
        await self._runner.start()
        self._trying = asyncio.create_task(self._try_soon())
        if self._datasets is not None:
            await self._datasets.start()

    async def stop(self) -> None:
        """Stop in good order: running files go back and are done by whoever comes next. Idempotent."""
        tasks = [*self._checks, *(t for t in (self._trying, self._finding) if t is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._datasets is not None:
            await self._datasets.stop()
        await self._runner.stop()

    # What one can ask.

    @property
    def codegens(self) -> tuple[str, ...]:
        """Languages that run here, as far as that is known; see :meth:`languages`."""
        task = self._finding
        known = task is not None and task.done() and not task.cancelled() and task.result() is not None
        return self._offered(python=known)

    async def languages(self) -> tuple[str, ...]:
        """Languages that run here; waits at the start until it is known whether functions can be isolated."""
        return self._offered(python=bool(await self._sandbox()))

    def _offered(self, *, python: bool) -> tuple[str, ...]:
        """Languages that need nothing, functions if they can be isolated, experiments with a container."""
        return (*(c for c in CODEGENS if python or c != "python"), *self._containers)

    async def submit(self, grant: Grant, ask: Submission) -> str:
        """Accept a request and return its id; it runs on from here whatever happens to this process.

        Raises:
            BadQuery, UnknownColumn, BadRequest, LimitExceeded: what is wrong, and what would be right.
            TooManyRequests: too much of this user is unfinished.
        """
        offered = await self.languages() if ask.codegen == "python" else self.codegens
        if ask.codegen not in offered:
            there = ", ".join(await self.languages())
            raise BadQuery(f"codegen: {ask.codegen!r} is not offered; there is {there}")
        if ask.format not in FORMATS:
            raise BadQuery(f"result-format: {ask.format!r} is not offered; there is {', '.join(FORMATS)}")
        ask = replace(ask, files=await asyncio.to_thread(_checked, ask, self._allow))
        left = await self._db.look(lambda tx: repo.unfinished(tx, grant.owner))
        if left + len(ask.files) >= self._unfinished:
            raise TooManyRequests(
                f"columns: {left} files and requests of yours are unfinished, of {self._unfinished} at most; "
                "come again when some have ended, or cancel some"
            )
        container = self._containers.get(ask.codegen)  # type: ignore[call-overload]
        image = "" if container is None else container.model_dump_json()
        query = await asyncio.to_thread(compile_query, ask.codegen, ask.selection, image)
        question = Question(query.digest, ask.codegen, ask.format)
        if ask.did is not None:
            return await self._submit_did(grant, ask, question)
        if ask.files:
            await self._check(grant, ask.selection, question, Input(ask.files[0]))
        id_ = str(uuid.uuid4())

        def store(tx: Connection) -> None:
            now = self._clock()
            held = dataset_repo.hold_list(tx, ask.files, grant, now)
            repo.add(tx, id_, grant, ask, question.digest, now, dataset=held.id)

        await self._db.run(store)
        self._runner.wake()
        return id_

    async def _submit_did(self, grant: Grant, ask: Submission, question: Question) -> str:
        assert ask.did is not None
        if self._datasets is None:
            scheme = ask.did.partition("://")[0] if "://" in ask.did else "rucio"
            raise BadQuery(
                f"did: no catalogue for {scheme[:20]}:// is configured; give the files as file-list"
            )
        datasets, name = self._datasets, self._datasets.named(ask.did, grant)
        id_, asked = str(uuid.uuid4()), replace(ask, did=name.name)

        def look(tx: Connection) -> Input | None:
            """The first file of a dataset that is known already."""
            id_ = tx.execute(select(known.c.id).where(known.c.current == name.key)).scalar_one_or_none()
            files = dataset_repo.inputs(tx, id_) if id_ is not None else []
            return files[0] if files else None

        def store(tx: Connection) -> None:
            now = self._clock()
            held, first = dataset_repo.hold(tx, name, grant, now, datasets.age)
            ready = held.state is Lookup.COMPLETE
            inputs = dataset_repo.inputs(tx, held.id) if ready else []
            state = State.SUBMITTED if ready else State.LOOKUP if first else State.PENDING
            digest = question.digest
            repo.add(tx, id_, grant, asked, digest, now, inputs=inputs, dataset=held.id, state=state)

        if (file := await self._db.look(look)) is not None:
            await self._check(grant, ask.selection, question, file)
        await self._db.run(store)
        datasets.wake()
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
                async with asyncio.timeout(min(left, LOOK)):  # another process may end it
                    await changed.wait()

    async def list(self, owner: str) -> Sequence[Request]:
        """An owner's youngest requests, youngest first."""
        return await self._db.look(lambda tx: repo.listed(tx, owner, LISTED))

    async def overview(self) -> Overview:
        """Everybody's requests, for operators only."""
        return await self._db.look(lambda tx: overview(tx, self._clock() - DAY, GLANCED))

    async def results(self, owner: str, id_: str, later_than: int = -1) -> Sequence[FileResult]:
        """Finished files that became visible after an instant in microseconds. Raises NotFound."""
        await self.status(owner, id_)
        return await self._db.look(lambda tx: repo.results(tx, id_, later_than))

    async def files(self, owner: str, id_: str, limit: int = 1000, after: int = -1) -> Sequence[FileResult]:
        """Files of a request in any state, by number, after one of them. Raises NotFound."""
        await self.status(owner, id_)
        return await self._db.look(lambda tx: repo.all_files(tx, id_, limit, after))

    async def progress(self, owner: str, id_: str) -> Progressed:
        """How far a request is, in files, events and bytes. Raises NotFound."""
        await self.status(owner, id_)
        return await self._db.look(lambda tx: repo.progress(tx, id_))

    async def urls(self, owner: str, id_: str, names: Sequence[str] | None = None) -> dict[str, ResultUrl]:
        """Result URLs that work by themselves; None: of all results so far.

        Raises:
            NotFound: no such request or result. Conflict: no result yet.
        """
        done = {r.name for r in await self.results(owner, id_) if r.state is FileState.DONE and r.name}
        wanted = sorted(done) if names is None else list(dict.fromkeys(names))
        if not done:
            raise Conflict(f"request {id_}: it has no result to download yet")
        unknown = [name for name in wanted if name not in done]
        if unknown:
            raise NotFound(f"request {id_}: it has no result {unknown[0][:300]!r}")
        expires = self._clock() + self._url_life

        def place(name: str) -> ResultUrl:
            path = f"/{id_}/{name}"
            token = self._sign(owner, path, expires)
            tail = f"?authz={token}" if token else ""
            return ResultUrl(f"{self._results_url}{encode(path)}{tail}", {}, int(expires))

        # each is a signature: of a large request that takes seconds
        return await asyncio.to_thread(lambda: {name: place(name) for name in wanted})

    async def cancel(self, owner: str, id_: str) -> None:
        """Stop a request; what is done stays. Raises NotFound; BadRequest when it has ended already."""
        found = await self.status(owner, id_)
        if found.state.final:
            raise BadRequest(f"request {id_}: it is {found.state} already")
        await self._db.run(lambda tx: repo.cancel(tx, id_, self._clock()))
        self._runner.drop(id_)

    async def cancel_all(self, owner: str) -> Sequence[str]:
        """Stop all requests of an owner; the ids of those that had not ended by themselves."""
        stopped = []
        for id_ in await self._db.look(lambda tx: repo.open_ones(tx, owner)):
            with contextlib.suppress(BadRequest, NotFound):  # it ended, or went, meanwhile
                await self.cancel(owner, id_)
                stopped.append(id_)
        return stopped

    async def delete(self, owner: str, id_: str) -> None:
        """Remove a request and its results. Raises NotFound; BadRequest while it runs."""
        found = await self.status(owner, id_)
        if not found.state.final:
            raise BadRequest(f"request {id_}: it is {found.state}; cancel it first")
        await self._runner.remove(id_)

    async def _sandbox(self) -> str:
        """How workers isolate python functions; empty: not at all."""
        if self._isolation is None:
            return ""
        if self._finding is None:
            self._finding = asyncio.create_task(asyncio.to_thread(self._isolation))
        found = await asyncio.shield(self._finding)
        return "" if found is None else found.text()

    async def _try_soon(self) -> None:
        """Find out about isolation before somebody asks; not at once, when everything else starts."""
        await asyncio.sleep(SOON)
        await self._sandbox()

    async def _check(self, grant: Grant, selection: str, question: Question, file: Input) -> None:
        """Compare names with the first file if it opens quickly; other trouble is the file's, later."""
        urls = (file.url, *file.replicas)
        if any(await self._db.look(lambda tx: cache_repo.known(tx, [(question, urls, 0.0)]))):
            return  # the same question was answered from some version of this file: its names exist
        if len(self._checks) >= CHECKS:
            return
        task = asyncio.create_task(self._runner.check(grant, question.codegen, selection, file))
        self._checks.add(task)
        task.add_done_callback(self._checked)
        await asyncio.wait({task}, timeout=CHECK)
        if task.done() and not task.cancelled() and isinstance(error := task.exception(), BadQuery):
            raise error

    def _checked(self, task: asyncio.Task[Outcome]) -> None:
        self._checks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or of no interest any more


def _checked(ask: Submission, allow: tuple[str, ...]) -> tuple[str, ...]:
    """The files of a question, each once. Raises BadRequest, BadQuery, LimitExceeded."""
    if len(ask.files) > MAX_FILES:
        raise LimitExceeded(f"file-list: {len(ask.files)} files; at most {MAX_FILES} in one request")
    for url in ask.files:
        check_url(url, allow)
    files = tuple(dict.fromkeys(ask.files))
    names: dict[str, str] = {}
    for url in files:
        # Clients know results by their names: two of the same name would be one.
        other = names.setdefault(object_name(url, ask.format), url)
        if other != url:
            raise BadQuery(
                f"file-list: {redacted(url)[:200]!r} and {redacted(other)[:200]!r} give results of one name;"
                " ask twice"
            )
    return files

"""Asking a root:// deployment: redirects followed, waits obeyed, lost connections made again.

One session for each server and token: who shares a login shares its rights. Requests that can be repeated
are repeated once when their connection turns out to be dead.

Credentials: a token is told to the server it was meant for, and to servers of the same deployment: the same
host, or a host in the same domain (``eosatlas.cern.ch`` and ``p06.cern.ch``), over TLS with a verified name.

Source: §2 of the project's root:// contract; xrootd's ``XrdClXRootDMsgHandler.cc`` for redirects.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from doma.core.errors import OriginFailed, StorageUnavailable, TimedOut
from doma.core.url import Origin
from doma.net.xroot_errors import error_of
from doma.net.xroot_frames import Status, number_and_text
from doma.net.xroot_session import Allow, Session, Times, connect
from doma.net.xroot_sinks import Gather, Sink
from doma.net.xroot_text import Target, redirect
from doma.net.xroot_wire import Answer

REDIRECTS = 8
"""In a row."""
SESSIONS = 64
"""At one time; unused ones go first."""

TRIED = 3
"""Servers that were not there, after whom a redirector is asked for another."""

Build = Callable[[Session, str], tuple[bytes, bytes]]
"""Makes body and data of a request, given what is to stand behind its path."""


class Reply(NamedTuple):
    """A good answer, and who gave it."""

    body: bytes
    session: Session


@dataclass(frozen=True, slots=True)
class Plea:
    """A request that may be repeated anywhere."""

    what: str
    """For messages: ``/a/b: stat``."""
    code: int
    build: Build
    repeatable: bool = True
    patience: float | None = None
    sink: Callable[[], Sink] | None = None
    """Makes a fresh place for the answer at each attempt."""


class XrootClient:
    """A client of one deployment.

    Args:
        origin: Where it begins: ``root://host:port`` or ``roots://…``.
        context: For TLS.
        times: Limits.
        allow: Judges each address before it is connected, those of redirects too.
    """

    def __init__(
        self, origin: Origin, context: ssl.SSLContext, times: Times | None = None, allow: Allow | None = None
    ) -> None:
        self._origin = origin
        self._context = context
        self._times = times or Times()
        self._allow = allow
        self._sessions: dict[tuple[Origin, str], asyncio.Task[Session]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(self, plea: Plea, token: str | None) -> Reply:
        """Send a request to whoever is responsible.

        Raises:
            DomaError: what the server answered, or what became of the connection.
        """
        where, opaque = self._origin, ""
        redirects, again, put_off = 0, plea.repeatable, 0.0
        tried: list[str] = []
        while True:
            try:
                session = await self._session(where, token)
            except StorageUnavailable:
                if where == self._origin or len(tried) >= TRIED:
                    raise
                tried.append(where.host)
                where, opaque = self._origin, f"tried={','.join(tried)}"
                continue
            sink = plea.sink() if plea.sink else Gather()
            body, data = plea.build(session, "&".join(part for part in (session.cgi, opaque) if part))
            try:
                answer = await session.connection.ask(
                    plea.code, body, data, sink, plea.patience or self._times.answer
                )
            except StorageUnavailable:
                if not again or session.connection.usable:
                    raise
                again = False
                continue
            session.since = asyncio.get_running_loop().time()
            if answer.status == Status.REDIRECT:
                redirects += 1
                if redirects > REDIRECTS:
                    raise OriginFailed(f"{plea.what}: {self._origin} redirects in a circle, or too far")
                target = redirect(*number_and_text(answer.body))
                where, opaque = self._towards(target), target.opaque
            elif answer.status == Status.WAIT:
                put_off = await self.pause(plea.what, answer, put_off)
            else:
                self.judge(plea.what, answer, session)
                return Reply(bytes(sink.data) if isinstance(sink, Gather) else b"", session)

    async def ask_at(self, session: Session, plea: Plea) -> bytes:
        """Send a request about an open file to the server that has it.

        Raises:
            DomaError: what the server answered, or what became of the connection.
        """
        put_off = 0.0
        while True:
            body, data = plea.build(session, "")
            sink = Gather()
            answer = await session.connection.ask(
                plea.code, body, data, sink, plea.patience or self._times.answer
            )
            session.since = asyncio.get_running_loop().time()
            if answer.status != Status.WAIT:
                self.judge(plea.what, answer, session)
                return bytes(sink.data)
            put_off = await self.pause(plea.what, answer, put_off)

    async def pause(self, what: str, answer: Answer, put_off: float) -> float:
        """Obey a wait; for how long the request was put off by now. Raises TimedOut: for too long."""
        seconds, text = number_and_text(answer.body)
        pause = min(max(seconds, 0.1), 3600)
        if put_off + pause > self._times.wait:
            said = f" ({text[:200]})" if text.isprintable() and text else ""
            raise TimedOut(f"{what}: the server puts it off for too long{said}; try later", retry_after=pause)
        await asyncio.sleep(pause)
        return put_off + pause

    @staticmethod
    def judge(what: str, answer: Answer, session: Session) -> None:
        """Accept a good answer; raise what any other means."""
        if answer.status == Status.OK:
            return
        place = f"{what} at {session.name}"
        if answer.status == Status.ERROR:
            raise error_of(*number_and_text(answer.body), place, session.token)
        raise OriginFailed(f"{place}: answered with status {answer.status}, which makes no sense here")

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks, self._sessions = list(self._sessions.values()), {}
        for task in tasks:
            task.cancel()
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(done, Session):
                done.connection.fail(StorageUnavailable(f"{done.name}: the client was closed"))
                await asyncio.wait([done.connection.closed], timeout=2)

    # --- inside ---

    async def _session(self, origin: Origin, token: str | None) -> Session:
        """The session with a server under a token; made by whoever comes first."""
        if self._closed:
            raise StorageUnavailable(f"{origin}: the client is closed")
        told = token if token and self._is_kin(origin.host) else None
        key = origin, sha256(told.encode()).hexdigest() if told else ""
        task = self._sessions.get(key)
        if task is not None and task.done() and not self._is_good(task):
            del self._sessions[key]
            task = None
        if task is None:
            self._make_room()
            task = asyncio.create_task(
                connect(origin, self._context, told, self._times, self._allow), name=f"connect {origin}"
            )
            self._sessions[key] = task
            self._watch()
        session = await asyncio.shield(task)
        session.since = asyncio.get_running_loop().time()
        return session

    @staticmethod
    def _is_good(task: "asyncio.Task[Session]") -> bool:
        good = not task.cancelled() and task.exception() is None
        return good and task.result().connection.usable

    def _towards(self, target: Target) -> Origin:
        """Whom a redirect means; TLS stays."""
        return Origin(self._origin.scheme, target.host.lower(), target.port)

    def _is_kin(self, host: str) -> bool:
        """Whether a host belongs to the deployment, so that it may know the token."""
        home = self._origin.host
        return host == home or (_domain(host) != "" and _domain(host) == _domain(home))

    def _make_room(self) -> None:
        """Close sessions that nobody uses while there are too many."""
        while len(self._sessions) >= SESSIONS:
            idle = [key for key, task in self._sessions.items() if task.done() and not self._in_use(task)]
            if not idle:
                raise StorageUnavailable(f"{self._origin}: too many connections are in use; try later")
            self._drop(idle[0])

    def _in_use(self, task: "asyncio.Task[Session]") -> bool:
        if not self._is_good(task):
            return False
        session = task.result()
        return session.files > 0 or session.connection.busy

    def _drop(self, key: tuple[Origin, str]) -> None:
        task = self._sessions.pop(key)
        if self._is_good(task):
            session = task.result()
            session.connection.fail(StorageUnavailable(f"{session.name}: the connection grew old; try again"))

    def _watch(self) -> None:
        """Keep one timer as long as there are sessions."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._times.keep / 4, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for key, task in list(self._sessions.items()):
            if not task.done() or self._in_use(task):
                continue
            if not self._is_good(task) or now - task.result().since > self._times.keep:
                self._drop(key)
        if self._sessions:
            self._watch()


def _domain(host: str) -> str:
    """What stands behind the first label, if it is a domain of at least two; "" for addresses."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        rest = host.partition(".")[2]
        return rest if "." in rest else ""
    return ""

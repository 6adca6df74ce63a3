"""What every process of a system opens alike: its tables, tokens and endpoints."""

import asyncio
import ctypes
import gc
import logging
import os
import secrets
import socket
import ssl
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from doma.app.endpoints import build_endpoints, forwarding
from doma.app.home import Home
from doma.app.identity import macaroons_of, make_issuer
from doma.auth.issuer import Issuer
from doma.auth.ledger import Ledger
from doma.auth.revoked import Revocations
from doma.auth.verifier import Verifier
from doma.core import config
from doma.core.events import Event
from doma.db.engine import Database
from doma.db.outbox import EventWriter
from doma.doors.endpoint import Site
from doma.doors.reads import HttpReads
from doma.doors.tpc import ThirdParty
from doma.doors.usage import Usage
from doma.monitor.stream import Stream
from doma.net import tls

log = logging.getLogger(__name__)


class Background:
    """Work that runs until the process stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin it; that it failed is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def cancel(self) -> None:
        """End all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a background task failed", exc_info=error)


@dataclass(frozen=True)
class Opened:
    """The site of one process and what it rests on."""

    base: str
    """``https://host:port``."""
    plain: str
    """``http://host:port``."""
    db: Database
    files: tls.Files
    tls: ssl.SSLContext
    issuer: Issuer | None
    verifier: Verifier
    site: Site
    background: Background
    events: EventWriter
    stream: Stream
    """Is told of open files."""
    revocations: Revocations


async def open_site(
    home: Home,
    settings: config.Config,
    roles: frozenset[str],
    data: Path | None,
    stack: AsyncExitStack,
    *,
    shared: bool = False,
) -> Opened:
    """Open them; ``stack`` closes them again.

    Args:
        home: The home.
        settings: The whole configuration; its address has a real port.
        roles: What the process runs.
        data: Folder to serve read-only as endpoint ``data``.
        stack: Closes them again, background work first after the doors.
        shared: Only the endpoints that several processes can serve at once.

    Raises:
        ConfigError, StorageUnavailable: something cannot be opened.
    """
    listen = settings.listen
    host, port = _host_of(listen, tell=not shared), listen.address.rpartition(":")[2]
    shown = listen.name or host
    base, plain = f"https://{shown}:{port}", f"http://{shown}:{port}"
    db = Database(settings.database.url or f"sqlite:///{home / 'doma.db'}")
    stack.callback(db.close)
    background = Background()
    # after the doors are closed and before the database is: the event writer flushes what is left
    stack.push_async_callback(background.cancel)
    if not shared:
        await asyncio.to_thread(db.migrate)
    files = tls.ensure(home / "tls", [shown])
    issuer = make_issuer(home, base, settings.auth, db) if settings.auth.embedded else None
    trusted = [*settings.auth.issuers]
    if issuer is not None:
        # any: a client of our own may be registered for tokens in the form of SciTokens
        trusted.insert(0, config.Issuer(issuer=issuer.url, vo=settings.auth.vo, profile="any"))
    # without an issuer too: another server's, with the same tables, may be one of those that are trusted
    ledger = issuer.ledger if issuer is not None else None
    revocations = Revocations(ledger or Ledger(db, b""))
    audiences = _audiences(base, plain, host, port, settings)
    verifier = Verifier(
        trusted,
        audiences,
        local={issuer.url: issuer.keys.jwks} if issuer is not None else {},
        skew=settings.auth.clock_skew,
        cache_dir=home / "keys" / "cache",
        revoked=revocations,
        macaroons=macaroons_of(home, shown, settings.auth.macaroon_lifetime),
    )
    stack.push_async_callback(verifier.close)
    revocations.on_new.append(verifier.drop)
    await revocations.look()
    background.spawn(revocations.watch())
    emit = EventWriter(db)
    background.spawn(emit.run())
    authorities = _authorities(files)
    trusted_cas = [*authorities, *map(Path, filter(None, [settings.tpc.ca_file]))]
    endpoints = build_endpoints(
        home, settings, roles, data, base, trusted_cas, trusted, emit, db=db, shared=shared
    )
    for endpoint in endpoints.values():
        stack.push_async_callback(endpoint.store.close)
    third_party = ThirdParty(settings.tpc, authorities)
    stack.push_async_callback(third_party.close)
    stream, reads = await _followed(settings.monitor, int(port), emit, background, stack)

    def tell(event: Event) -> None:
        emit(event)
        stream.see(event)

    usage = Usage(tell, {issuer.issuer: issuer.vo for issuer in trusted})
    background.spawn(usage.run())
    stack.callback(usage.tell)
    forward = forwarding(endpoints)
    site = Site(
        verifier, endpoints, usage.see, shown, _doors(audiences), third_party, usage, forward, reads,
        query_token=settings.auth.query_token,
    )  # fmt: skip
    context = _server_context(listen, files)
    return Opened(
        base, plain, db, files, context, issuer, verifier, site, background, emit, stream, revocations
    )


async def _followed(
    section: config.Monitor, port: int, emit: EventWriter, background: Background, stack: AsyncExitStack
) -> tuple[Stream, HttpReads]:
    """Who is told of open files, and what joins reads over HTTP to them; ended in reverse order."""
    stream = Stream(section, port=port, sid=secrets.randbits(48), emit=emit)
    stack.callback(stream.close)
    await stream.start()
    background.spawn(stream.run())
    reads = HttpReads(stream, section.idle, clock=time.time, all=bool(section.dest))
    stack.callback(reads.close)
    background.spawn(reads.run())
    return stream, reads


def _server_context(listen: config.Listen, files: tls.Files) -> ssl.SSLContext:
    if listen.certificate:
        return tls.server_context(listen.certificate, listen.key)
    return tls.server_context(files.certificate, files.key)


def _authorities(files: tls.Files) -> list[Path]:
    """Whom copies from and to other servers trust besides the system's: our own, and the grid's (W73)."""
    grid = Path(os.environ.get("X509_CERT_DIR", "/etc/grid-security/certificates"))
    return [files.ca, grid] if grid.is_dir() else [files.ca]


def _host_of(listen: config.Listen, *, tell: bool) -> str:
    """The host that is listened on; of all addresses the name that others know, or this machine's own."""
    host = listen.address.rpartition(":")[0]
    if host.strip("[]") not in {"", "::", "0.0.0.0"}:  # noqa: S104 - asked for by the operator
        return host
    found = listen.name or socket.getfqdn()
    if tell and not listen.name:
        log.warning(
            "listen.address %s: other machines can ask, but tokens, certificate and addresses are for %s;"
            " set listen.name to the name by which they know this one",
            listen.address,
            found,
        )
    return found


def _audiences(base: str, plain: str, host: str, port: str, settings: config.Config) -> list[str]:
    """All names of this server: as URL, and bare."""
    names = {base, plain, *settings.auth.audiences}
    for name in {
        host,
        settings.listen.name,
        *(("localhost", "127.0.0.1") if host.startswith("127.") else ()),
    }:
        if name:
            names |= {f"https://{name}:{port}", f"http://{name}:{port}", name, f"{name}:{port}"}
    return sorted(names)


def _doors(audiences: list[str]) -> frozenset[tuple[str, int]]:
    """Host and port of the names that are URLs of a server, not of something on it."""
    doors = set()
    for name in audiences:
        with suppress(ValueError):  # a port that is no number: a name for tokens only
            url = urlsplit(name)
            if url.scheme in {"https", "http"} and url.hostname and url.path in {"", "/"}:
                doors.add((url.hostname, url.port or (443 if url.scheme == "https" else 80)))
    return frozenset(doors)


def settle() -> None:
    """Spare a process that has started what it would do over and over.

    A tenth of the processor time of a cold read was the collector's, going over modules and tables again; a
    quarter of that of a read over root:// went to buffers that glibc gave back to the system and took
    again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's ``malloc.h``."""

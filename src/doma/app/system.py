"""The running system: opens the engines, wires the chosen roles, starts and stops them in order."""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from doma import __version__
from doma.app.endpoints import build_endpoints
from doma.app.home import Home
from doma.app.identity import ADMIN_SCOPES, make_issuer
from doma.app.services import Services
from doma.auth.verifier import Verifier
from doma.bus.local import Bus
from doma.core.config import Config, Issuer, Listen
from doma.db.engine import Database
from doma.db.outbox import EventWriter, Relay
from doma.doors.endpoint import Site
from doma.doors.fast import FastDoor
from doma.net import tls
from doma.net.listener import Listener

log = logging.getLogger(__name__)


class System:
    """One process with its roles.

    Args:
        home: The locked home.
        config: The whole configuration; its address has a real port.
        roles: Some of :data:`doma.app.settings.ROLES`.
        data: Folder to serve read-only as endpoint ``data``.
    """

    def __init__(self, home: Home, config: Config, roles: frozenset[str], data: Path | None) -> None:
        self._home, self._config, self._roles, self._data = home, config, roles, data
        self._stack = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> dict[str, Any]:
        """Start everything; the content of ``run.json`` once all roles are ready.

        Raises:
            PortInUse, ConfigError, StorageUnavailable: what was started is stopped by :meth:`stop`.
        """
        home, config = self._home, self._config
        listen = config.listen
        host, port = listen.address.rsplit(":", 1)
        everywhere = host.strip("[]") in {"", "::", "0.0.0.0"}  # noqa: S104 - asked for by the operator
        shown = config.listen.name or (socket.getfqdn() if everywhere else host)
        base, plain = f"https://{shown}:{port}", f"http://{shown}:{port}"

        db = Database(config.database.url or f"sqlite:///{home / 'doma.db'}")
        self._stack.callback(db.close)
        self._stack.push_async_callback(self._cancel)
        await asyncio.to_thread(db.migrate)
        files = tls.ensure(home / "tls", [shown])
        context = _server_context(listen, files)
        issuer = make_issuer(home, base, config.auth) if config.auth.embedded else None
        trusted = [*config.auth.issuers]
        if issuer is not None:
            trusted.insert(0, Issuer(issuer=issuer.url, vo=config.auth.vo))
        verifier = Verifier(
            trusted,
            _audiences(base, plain, host, port, config),
            local={issuer.url: issuer.keys.jwks} if issuer is not None else {},
            skew=config.auth.clock_skew,
            cache_dir=home / "keys" / "cache",
        )
        self._stack.push_async_callback(verifier.close)

        bus, emit = Bus(), EventWriter(db)
        self._spawn(emit.run())
        endpoints = build_endpoints(home, config, self._roles, self._data, base, files.ca, trusted, emit)
        for endpoint in endpoints.values():
            self._stack.push_async_callback(endpoint.store.close)
        site = Site(verifier, endpoints, emit, shown)
        services = Services(home, config, self._roles, base, files, site, db, bus, issuer, verifier)
        services.build()
        listener = Listener(
            services.app, fast=FastDoor(site, count=services.count), listen=listen, tls=context
        )
        await listener.start()
        home.write("port", f"{port}\n")
        self._stack.push_async_callback(listener.stop)
        self._spawn(Relay(db, bus.pass_on).run())
        await self._stack.enter_async_context(services)
        if issuer is not None:
            self._write_token(issuer.issue)
            self._spawn(self._renew(issuer.issue))
        run = {
            "pid": os.getpid(),
            "version": __version__,
            "url": plain,
            "https": base,
            "ca_file": str(files.ca),
            "token_file": str(home / "token"),
            "endpoints": {name: services.addresses(name, plain) for name in endpoints},
            "services": services.urls,
        }
        home.publish(run)
        return run

    async def stop(self) -> None:
        """Stop in the reverse order; running answers may finish."""
        await self._stack.aclose()

    async def _cancel(self) -> None:
        # after the doors are closed and before the database is: the event writer flushes what is left
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a background task failed", exc_info=error)

    def _write_token(self, issue: Callable[..., str]) -> None:
        token = issue(subject="admin", scopes=ADMIN_SCOPES, audience=())
        self._home.write("token", token + "\n")

    async def _renew(self, issue: Callable[..., str]) -> None:
        while True:
            await asyncio.sleep(self._config.auth.lifetime / 2)
            self._write_token(issue)


def _server_context(listen: Listen, files: tls.Files) -> ssl.SSLContext:
    if listen.certificate:
        return tls.server_context(listen.certificate, listen.key)
    return tls.server_context(files.certificate, files.key)


def _audiences(base: str, plain: str, host: str, port: str, config: Config) -> list[str]:
    """All names of this server: as URL, and bare."""
    names = {base, plain, *config.auth.audiences}
    for name in {host, config.listen.name, *(("localhost", "127.0.0.1") if host.startswith("127.") else ())}:
        if name:
            names |= {f"https://{name}:{port}", f"http://{name}:{port}", name, f"{name}:{port}"}
    return sorted(names)

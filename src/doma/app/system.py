"""The running system: opens the engines, wires the chosen roles, starts and stops them in order."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from doma import __version__
from doma.app.endpoints import credit
from doma.app.home import Home
from doma.app.identity import ADMIN_SCOPES
from doma.app.opened import open_site, settle
from doma.app.services import Services
from doma.app.workers import Workers, order_for
from doma.bus.local import Bus
from doma.core.config import Config
from doma.db.outbox import Relay
from doma.doors.fast import FastDoor
from doma.net.listener import Listener


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

    async def start(self) -> dict[str, Any]:
        """Start everything; the content of ``run.json`` once all roles are ready.

        Raises:
            PortInUse, ConfigError, StorageUnavailable: what was started is stopped by :meth:`stop`.
        """
        home, config = self._home, self._config
        opened = await open_site(home, config, self._roles, self._data, self._stack)
        issuer, spawn, bus = opened.issuer, opened.background.spawn, Bus()
        services = Services(home, config, self._roles, opened, bus)
        services.build()
        listener = Listener(
            services.app,
            fast=FastDoor(opened.site, count=services.count),
            listen=config.listen,
            tls=opened.tls,
            root=services.root_door().take,
            reuse_port=config.listen.workers > 1,
        )
        await listener.start()
        home.write("port", config.listen.address.rpartition(":")[2] + "\n")
        self._stack.push_async_callback(listener.stop)
        relay = opened.events.relay = Relay(opened.db, bus.pass_on, wanted=bus.wanted)
        spawn(relay.run())
        if config.listen.workers > 1:
            order = order_for(home.path, config, self._roles, self._data, opened.site.endpoints)
            workers = Workers(
                config.listen.workers - 1,
                services.app,
                order,
                services.metrics,
                relay.wake,
                listener.adopt_root,
                partial(credit, opened.site.endpoints),
            )
            self._stack.push_async_callback(workers.stop)
            await workers.start()
        # entered last, so that endless answers are ended before anybody waits for running ones
        await self._stack.enter_async_context(services)
        if issuer is not None:
            self._write_token(issuer.issue)
            spawn(self._renew(issuer.issue))
        run = {
            "pid": os.getpid(),
            "version": __version__,
            "url": opened.plain,
            "https": opened.base,
            "ca_file": str(opened.files.ca),
            "token_file": str(home / "token"),
            "endpoints": {name: services.addresses(name) for name in opened.site.endpoints},
            "services": services.urls,
        }
        settle()
        home.publish(run)
        return run

    async def stop(self) -> None:
        """Stop in the reverse order; running answers may finish."""
        await self._stack.aclose()

    def _write_token(self, issue: Callable[..., str]) -> None:
        token = issue(subject="admin", scopes=ADMIN_SCOPES, audience=())
        self._home.write("token", token + "\n")

    async def _renew(self, issue: Callable[..., str]) -> None:
        while True:
            await asyncio.sleep(self._config.auth.lifetime / 2)
            self._write_token(issue)

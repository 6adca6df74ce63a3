"""Running a system in the foreground: lock, start, announce, wait for a signal, stop."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from doma.app.address import placed
from doma.app.home import Home
from doma.app.settings import ROLES, load
from doma.auth.redact import Redactor
from doma.core.config import Config
from doma.core.errors import BadRequest

if TYPE_CHECKING:
    from doma.app.system import System

log = logging.getLogger(__name__)


def run(
    home: Home,
    config: Path | None,
    listen: str | None,
    roles: Sequence[str],
    data: Path | None,
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        home: Where everything is kept.
        config: TOML file; None: ``doma.toml`` of the home, if there is one.
        listen: ``host:port`` that overrides the configuration.
        roles: Roles to run; empty: all.
        data: Folder to serve read-only as endpoint ``data``.
        ready: Called with the content of ``run.json`` once every role is ready.

    Raises:
        AlreadyRunning, PortInUse, ConfigError, BadRequest: nothing was started.
    """
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise BadRequest(f"role {unknown[0]!r} does not exist; roles are {', '.join(ROLES)}")
    if data is not None and not data.is_dir():
        raise BadRequest(f"{data}: not a folder; --data takes one to serve read-only")
    own = home / "doma.toml"
    settings = load(config or (own if own.exists() else None))
    if listen:
        settings = _with_address(settings, listen)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Redactor())
    os.umask(0o077)
    home.acquire()
    try:
        settings = settings.model_copy(update={"listen": placed(settings.listen, home)})
        # whatever can be refused is refused before the price of these imports is paid
        from doma.app.system import System

        uvloop.run(_serve(System(home, settings, frozenset(roles) or frozenset(ROLES), data), ready))
    finally:
        home.release()


def _with_address(settings: Config, listen: str) -> Config:
    return settings.model_copy(update={"listen": settings.listen.model_copy(update={"address": listen})})


async def _serve(system: "System", ready: Callable[[dict[str, Any]], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        ready(await system.start())
        await stop.wait()
        log.info("stopping: running answers may finish")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            # a second signal ends the process at once: nothing is lost by that
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)
        await system.stop()

"""``doma up``, ``down``, ``status``: the life of a running system."""

import json as jsonlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doma.app.home import Home, default_home
from doma.cli import show
from doma.core.errors import DomaError, ServiceUnavailable, TimedOut

STOP = 45.0
"""Seconds that ``down`` waits: the drain of running answers and a margin."""


def up(
    home: Path | None,
    config: Path | None,
    listen: str | None,
    roles: Sequence[str],
    data: Path | None,
    json: bool,
) -> None:
    """Run in the foreground; prints the addresses once everything is ready."""
    import logging

    from doma.app.run import run

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "httpcore", "alembic", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    run(Home(home or default_home()), config, listen, roles, data, ready=lambda r: _announce(r, json))


def _announce(run: dict[str, Any], json: bool) -> None:
    if json:
        show.as_json(run)
    else:
        rows = [
            ("endpoint " + name, doors.get("https") or doors.get("http"))
            for name, doors in run["endpoints"].items()
        ]
        rows += [("service " + name, url) for name, url in run["services"].items()]
        rows += [("CA", run["ca_file"]), ("admin token", run["token_file"])]
        show.table(f"doma {run['version']} is ready, pid {run['pid']}", ("what", "where"), rows)
    sys.stdout.flush()


def down(home: Path | None, json: bool) -> None:
    """Ask the process to stop and wait until it has."""
    place = Home(home or default_home())
    pid = place.running()
    if pid and not _ended(place, pid):
        raise TimedOut(
            f"{place.path}: pid {pid} did not stop within {STOP:.0f} s; kill it, nothing is lost by that"
        )
    if json:
        show.as_json({"home": str(place.path), "stopped": pid})
    else:
        print(f"stopped pid {pid}" if pid else f"nothing runs in {place.path}")


def _ended(place: Home, pid: int) -> bool:
    """Send SIGTERM and wait for the end of the process; whether it came in time."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # the descriptor names one process for ever; that it is the right one is asked after it is open
        if place.running() == pid:
            signal.pidfd_send_signal(process, signal.SIGTERM)
        return bool(select.select([process], [], [], STOP)[0])
    except ProcessLookupError:
        return True
    except PermissionError as e:
        raise DomaError(f"{place.path}: pid {pid} belongs to another user; stop it as that user") from e
    finally:
        os.close(process)


def status(home: Path | None, json: bool) -> None:
    """Addresses, health and the cache's numbers of the running system."""
    import httpx

    from doma.facility.access import Access
    from doma.net.problem import raise_for

    place = Home(home or default_home())
    pid = place.running()
    if not pid:
        raise ServiceUnavailable(
            f"{place.path}: nothing runs here; start it with 'doma up --home {place.path}'"
        )
    access = Access.read(place.path)
    run = jsonlib.loads((place / "run.json").read_text())
    try:
        with access.http(timeout=10) as http:
            health = raise_for(http.get("/health")).json()
            cache = raise_for(http.get("/api/v1/cache/stats")).json() if "cache" in access.endpoints else None
    except httpx.HTTPError as e:
        raise ServiceUnavailable(f"{access.https}: pid {pid} does not answer ({e}); try 'doma doctor'") from e
    if json:
        show.as_json({**run, "health": health, "cache": cache})
        return
    _announce(run, json=False)
    show.table("health", ("part", "state"), list(health.items()))
    if cache:
        numbers = {f"bytes {k}": show.size(v) for k, v in cache["bytes"].items()} | cache["counts"]
        numbers |= {"disk used": show.size(cache["used"]), "disk limit": show.size(cache["size"])}
        show.table("cache", ("number", "value"), list(numbers.items()), right=("value",))

"""The services of one process: their apps under one root, and their life."""

import asyncio
import re
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from doma.app.endpoints import RESERVED, ailing, caches
from doma.app.home import Home
from doma.app.opened import Opened
from doma.app.pool import INCOMING, pool_of
from doma.auth.routes import issuer_app, metadata_route
from doma.bus.local import Bus
from doma.cache.store import CacheStore
from doma.columns.model import Grant
from doma.core.config import Config
from doma.core.errors import ConfigError
from doma.doors import macaroons, s3, s3_routes, tape, webdav
from doma.doors.root import RootDoor
from doma.doors.s3_call import Door
from doma.doors.s3_keys import Keys
from doma.doors.tpc import ThirdParty
from doma.doors.usage import SUMS
from doma.monitor.counted import counted
from doma.monitor.metrics import Metrics
from doma.net.problem import nameable_only
from doma.store.file import FileStore
from doma.store.tape import TapeStore
from doma.store.tape_requests import StageRequests
from doma.web import app as web
from doma.web.access import is_own
from doma.web.overview import Overview
from doma.web.stream import Streams

_LAX = frozenset({"servicex", "token", "transformation-request", "requests"})
"""Services whose paths may hold ``//``."""


@dataclass
class Services:
    """What the services of a process are made from; a context that starts and stops them."""

    home: Home
    config: Config
    roles: frozenset[str]
    opened: Opened
    bus: Bus
    metrics: Metrics = field(default_factory=Metrics)
    urls: dict[str, str] = field(default_factory=dict)
    app: ASGIApp = field(init=False)
    s3_door: Door = field(init=False)
    flight: str = ""
    _beside: dict[str, str] = field(default_factory=dict)
    """Scan services by the origins of files that they read, too."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def build(self) -> None:
        """Make the root application; nothing runs yet.

        Raises:
            ConfigError: a role needs what the configuration does not give.
        """
        streams = Streams(self.opened.db, self.bus)
        overview = Overview(
            self.opened.site,
            self.opened.base,
            self.urls,
            self.metrics,
            self.opened.db,
            doors=self.addresses,
            columns=(lambda: self._service.overview()) if "columns" in self.roles else None,
        )
        root = web.app(
            self.opened.verifier,
            self.bus,
            self.opened.db,
            self.metrics,
            overview.now,
            realm=self.opened.site.name,
            streams=streams,
            ailing=partial(ailing, self.opened.site.endpoints),
        )
        self._stack.callback(self.bus.close)
        if self.opened.issuer is not None and "issuer" in self.roles:
            root.routes.append(metadata_route(self.opened.issuer))
            root.mount(self.opened.issuer.path, issuer_app(self.opened.issuer, self.opened.revocations))
            self.urls["issuer"] = self.opened.issuer.url
        if self.opened.verifier.macaroons is not None:
            root.routes.extend(macaroons.routes(self.opened.site, self.opened.base))
        if "web" in self.roles:
            self.urls |= {"dashboard": self.opened.base + "/", "metrics": self.opened.base + "/metrics"}
            self.urls["events"] = self.opened.base + "/events"
        if (usage := self.opened.site.usage) is not None:
            for name, text in SUMS.items():
                self.metrics.watch(
                    f"doma_usage_{name}_total",
                    text,
                    partial(usage.numbers, name),
                    kind="counter",
                    labels=("endpoint", "vo"),
                )
        self._copies()
        self._caches(root)
        self._s3(root)
        self._tape(root)
        if "columns" in self.roles:
            self._columns(root)
        doors = counted(webdav.app(self.opened.site), self.metrics, endpoints=self.opened.site.endpoints)
        inner = _dispatch(doors, counted(root, self.metrics), RESERVED | {"", self.config.auth.vo})
        own = counted(s3.app(self.s3_door), self.metrics, door="s3", endpoints=self.opened.site.endpoints)
        keys = partial(s3_routes.sts, self.s3_door, self.config.s3.key_lifetime)
        self.app = s3.beside(own, keys, nameable_only(inner, self.opened.site.name))

    def count(
        self, endpoint: str, method: str, status: int, received: int, sent: int, seconds: float, times: int
    ) -> None:
        """Count what the door answered without the application (:data:`doma.doors.fast.Count`)."""
        self.metrics.request("https", endpoint, method, status, seconds, received, sent, times)

    def root_door(self) -> RootDoor:
        """What serves root:// connections."""
        opened, staging = self.opened, self.config.staging
        site = replace(opened.site, stages=self._staging, pin=staging.pin)
        plain, count = self.config.listen.plain_http, self.metrics.request
        return RootDoor(site, tls=opened.tls, plain=plain, count=count, observer=opened.stream)

    def addresses(self, name: str) -> dict[str, str]:
        """The doors of an endpoint, for ``run.json``."""
        doors = {
            "http": f"{self.opened.plain}/{name}",
            "https": f"{self.opened.base}/{name}",
            "root": f"root://{self.opened.base.partition('://')[2]}//{name}",
        }
        own = {"results", INCOMING}
        return doors | ({"flight": f"{self.flight}/{name}"} if self.flight and name not in own else {})

    async def __aenter__(self) -> Self:
        """Start the column service's workers and the flight door."""
        if "columns" in self.roles:
            await self._service.start()
            self._stack.push_async_callback(self._service.stop)
        if "scan" in self.roles:
            await self._scan()
        self.opened.background.spawn(self._staging.run())
        for endpoint in self.opened.site.endpoints.values():
            if isinstance(endpoint.store, TapeStore):
                endpoint.store.start()
        for cache in caches(self.opened.site.endpoints).values():
            self.opened.background.spawn(cache.tend())
        self.opened.background.spawn(s3.sweep_forever(self.s3_door, self.config.s3.upload_lifetime))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop them in reverse order."""
        await self._stack.aclose()

    def _copies(self) -> None:
        copier = self.opened.site.third_party
        if isinstance(copier, ThirdParty):
            self.metrics.watch(
                "doma_copies_total",
                "Third-party copies that ended, by way and outcome.",
                lambda: dict(copier.ended),
                kind="counter",
                labels=("mode", "outcome"),
            )
            self.metrics.watch(
                "doma_copied_bytes_total",
                "Bytes of third-party copies that were done.",
                lambda: dict(copier.moved),
                kind="counter",
                labels=("mode",),
            )

    def _caches(self, root: Any) -> None:
        from doma.cache.routes import router

        found = caches(self.opened.site.endpoints)
        for name, cache in found.items():
            routes = router(cache, self.opened.verifier, self.opened.site.endpoints[name].gate)
            # the first answers also at the plain address that clients know
            first = name == next(iter(found))
            if first:
                root.include_router(routes)
            root.include_router(routes, prefix=f"/api/v1/endpoints/{name}", include_in_schema=not first)
            cache.catalogue.vo = self._vo
        self.metrics.watch(
            "doma_cache_evicted_bytes_total",
            "Disk bytes that caches freed, by reason.",
            lambda: {(name, why): n for name, c in found.items() for why, n in c.stats().evicted.items()},
            kind="counter",
            labels=("endpoint", "reason"),
        )
        self.metrics.watch(
            "doma_cache_origin_requests_total",
            "Reads of caches at their origins; those that clients named are one, 'forwarded'.",
            lambda: {(name, at): n for name, c in found.items() for at, n in c.connections.requests.items()},
            kind="counter",
            labels=("endpoint", "origin"),
        )
        self.metrics.watch(
            "doma_cache_origin_latency_seconds_total",
            "Seconds that these reads took together.",
            lambda: {(name, at): n for name, c in found.items() for at, n in c.connections.seconds.items()},
            kind="counter",
            labels=("endpoint", "origin"),
        )
        self.metrics.watch(
            "doma_cache_queue_depth",
            "Reads that wait for their turn at an origin.",
            lambda: {(name, at): n for name, c in found.items() for at, n in c.lanes.depth().items()},
            labels=("endpoint", "origin"),
        )
        stream = self.opened.stream
        self.metrics.watch(
            "doma_cache_delivered_bytes_total",
            "Bytes of closed files that were read through a cache.",
            lambda: dict(stream.delivered),
            kind="counter",
            labels=("endpoint", "class", "vo", "door"),
        )
        self.metrics.watch(
            "doma_monitor_packets_total",
            "Monitoring packets sent, and those that this machine refused to send.",
            lambda: {("sent",): stream.sent, ("lost",): stream.lost},
            kind="counter",
            labels=("outcome",),
        )
        names = next(iter(found.values())).stats().metrics() if found else {}
        for metric in names:
            self.metrics.watch(
                metric,
                "See the cache's statistics.",
                partial(_numbers, found, metric),
                kind="counter" if metric.endswith("_total") else "gauge",
                labels=("endpoint",),
            )

    def _vo(self, token: str) -> str:
        known = self.opened.verifier.known(token) if token else None
        return known.vo if known is not None else ""

    def _s3(self, root: Any) -> None:
        section, opened = self.config.s3, self.opened
        uploads = FileStore(self.home / "s3")
        self._stack.push_async_callback(uploads.close)
        issuers = [issuer.issuer for issuer in self.config.auth.issuers]
        keys = Keys(
            self.home.secret("keys/s3.key"),
            [*issuers, *([opened.issuer.url] if opened.issuer else [])],
            opened.revocations.marks,
        )
        self.s3_door = Door(opened.site, keys, uploads, time.time)
        root.include_router(s3_routes.router(self.s3_door, opened.base, section.key_lifetime))
        self.urls["s3"] = opened.base

    def _tape(self, root: Any) -> None:
        opened, section = self.opened, self.config.staging
        stores = {name: endpoint.store for name, endpoint in opened.site.endpoints.items()}
        self._staging = StageRequests(opened.db, stores, section)
        root.include_router(tape.router(opened.site, self._staging, self.bus, section, opened.base))
        self.urls["tape"] = f"{opened.base}/api/v1"

    def _columns(self, root: Any) -> None:
        from doma.app import inputs
        from doma.columns import dataset_routes, login, sandbox
        from doma.columns.routes import caller_of, router
        from doma.columns.service import ColumnService
        from doma.web import requests

        if self.opened.issuer is None:
            raise ConfigError(
                "auth.embedded = false: the role 'columns' needs the embedded issuer to renew tokens"
            )
        section = self.config.columns
        self._beside.update(self.config.columns.flight)
        road = inputs.road_of(self.config, self.opened, self._beside)
        buckets = inputs.buckets_of(self.config)
        mint = inputs.Minter(
            self.opened.issuer,
            self.opened.base,
            buckets,
            inputs.local(self.opened.site.endpoints),
            section.flight,
        )
        allow = inputs.allowed(self.config, self.opened.base)
        datasets = inputs.make_datasets(self.config, self.opened, mint)
        self._service = ColumnService(
            self.opened.db,
            self.opened.site.endpoints["results"].store,
            f"{self.opened.base}/results",
            pool_of(section, self.opened, self.opened.issuer, self.home),
            mint,
            mint.sign,
            section,
            work_dir=self.home / "work",
            ca_file=str(self.opened.files.ca),
            allow=allow,
            datasets=datasets,
            road=road,
            isolation=partial(sandbox.available, section, self.home / "."),
            url_life=min(section.url_life, section.retention),
        )
        caller = caller_of(self.opened.verifier, self._alone)
        root.include_router(
            router(
                self._service,
                self.opened.verifier,
                log_url=f"{self.opened.base}/requests",
                results_url=f"{self.opened.base}/results",
                keys=self.s3_door.keys,
                caller=caller,
                retention=section.retention,
            )
        )
        root.include_router(dataset_routes.router(datasets, caller, allow))
        root.include_router(login.router(self.opened.issuer, self.opened.verifier))
        shown = requests.Pages(self.opened.db, self._service, self.opened.verifier)
        root.include_router(requests.router(shown, root.state.streams, caller))
        self.urls["servicex"] = self.opened.base

    def _alone(self, request: Request) -> Grant | None:
        """Who asks without a token: the user whose process this is, where the configuration wants that."""
        if not self.config.columns.open or self.opened.issuer is None or not is_own(request):
            return None
        return Grant(self.opened.issuer.url, "admin", ("storage.read:/",))

    async def _scan(self) -> None:
        from doma.scan.flight import FlightDoor
        from doma.scan.opener import StoreOpener
        from doma.scan.service import ScanService

        loop = asyncio.get_running_loop()
        served = {n: e for n, e in self.opened.site.endpoints.items() if n not in {"results", INCOMING}}
        service = ScanService(
            {name: StoreOpener(e.store, loop) for name, e in served.items()},
            self.opened.verifier,
            {name: e.gate for name, e in served.items()},
            self.config.scan,
            # kept, so that tickets outlive a restart and workers take each other's
            key=self.home.secret("keys/tickets.key"),
        )
        host = str(urlsplit(self.opened.base).hostname)
        door = FlightDoor(
            service,
            host,
            0,
            self.opened.files.certificate.read_bytes(),
            self.opened.files.key.read_bytes(),
            loop=loop,
        )
        self.flight = await asyncio.to_thread(door.start)
        self._stack.push_async_callback(asyncio.to_thread, door.stop)
        self.urls["flight"] = self.flight
        self._beside.setdefault(self.opened.base, self.flight)


def _dispatch(doors: ASGIApp, root: ASGIApp, services: frozenset[str]) -> ASGIApp:
    """Paths of services go to the root app, all others to the doors, which know the endpoints."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        first = scope["path"].lstrip("/").partition("/")[0] if scope["type"] == "http" else ""
        if first in _LAX:
            # ServiceX's clients join addresses that end in a slash, and follow no redirect
            path = re.sub("/+", "/", scope["path"])
            scope = {**scope, "path": path.rstrip("/") if first in {"servicex", "token"} else path}
        await (root if first in services else doors)(scope, receive, send)

    return app


def _numbers(found: Mapping[str, CacheStore], metric: str) -> dict[tuple[str, ...], float]:
    return {(name,): cache.stats().metrics()[metric] for name, cache in found.items()}

"""The flight door: scans over Arrow Flight, on a thread and a port of its own.

Descriptors: a path is a dataset name, a command is the query JSON. Tokens come in the ``authorization``
header of every call. Actions: ``explain`` (body: query JSON), ``stats`` and ``cancel`` (body: the scan's
number, from ``app_metadata`` of FlightInfo), ``list``.

Source: Arrow Flight RPC; scan.md §2.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity, bearer
from doma.core.errors import (
    BadQuery,
    BadRequest,
    DomaError,
    IssuerUnavailable,
    NotFound,
    PortInUse,
    Unsupported,
)
from doma.scan import jsontext
from doma.scan.flighterror import to_flight
from doma.scan.model import Query, parse, whole
from doma.scan.plan import Planned
from doma.scan.service import Run, ScanService

log = logging.getLogger(__name__)

AUTH_TIMEOUT = 30.0
ACTIONS = (
    ("explain", "What a query would read; body: query JSON"),
    ("stats", "What a scan has done; body: its number"),
    ("cancel", "Stop a scan; body: its number"),
    ("list", "Names of scannable files; no body"),
)
T = TypeVar("T")


class FlightDoor:
    """A Flight server over a scan service.

    Args:
        service: What it serves.
        host: Name or address to listen on, and in its location.
        port: 0: a free one.
        cert: PEM certificate chain; empty: plain gRPC, on loopback only.
        key: PEM private key.
        loop: Where tokens are verified; it must run while the door is open.
    """

    def __init__(
        self,
        service: ScanService,
        host: str,
        port: int = 0,
        cert: bytes = b"",
        key: bytes = b"",
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._service = service
        self._host = host
        self._port = port
        self._cert = cert
        self._key = key
        self._loop = loop
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen; the location for clients (``grpc+tls://host:port``).

        Raises:
            BadRequest: plain gRPC off loopback. PortInUse: the port is taken.
        """
        if not self._cert and self._host not in ("127.0.0.1", "localhost", "::1"):
            raise BadRequest(f"{self._host}: the flight door needs a certificate off loopback")
        scheme = "grpc+tls" if self._cert else "grpc"
        shown = f"[{self._host}]" if ":" in self._host else self._host
        certificates = [(self._cert, self._key)] if self._cert else None
        try:
            self._server = _Server(
                self._service,
                f"{scheme}://{shown}:{self._port}",
                certificates,
                _Authenticate(self._service, self._loop),
            )
        except (pa.ArrowException, OSError) as e:
            raise PortInUse(f"{self._host}:{self._port}: the flight door cannot listen here ({e})") from e
        self._server.location = f"{scheme}://{shown}:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve, name="flight", daemon=True)
        self._thread.start()
        return self._server.location

    def stop(self) -> None:
        """Stop scans and the server. Idempotent; not to be called on the loop while scans run."""
        self._service.close()
        if self._server is not None:
            self._server.shutdown()
            self._server = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class _Authenticate(fl.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow has no types
    """Verifies the token of every call before it is looked at."""

    def __init__(self, service: ScanService, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._loop = loop

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> "_Caller":
        values = next((v for k, v in headers.items() if k.lower() == "authorization"), None)
        return _answered(lambda: self._caller(values))

    def _caller(self, values: list[str] | None) -> "_Caller":
        token = bearer_of(values[0]) if values else None
        if token is None:
            return _Caller(None, None)
        future = asyncio.run_coroutine_threadsafe(self._service.verifier.verify(token), self._loop)
        try:
            return _Caller(future.result(AUTH_TIMEOUT), token)
        except FutureTimeout as e:
            future.cancel()
            raise IssuerUnavailable(f"token: could not be verified in {AUTH_TIMEOUT:g} s; try again") from e


class _Caller(fl.ServerMiddleware):  # type: ignore[misc]  # pyarrow has no types
    """Who makes this call."""

    def __init__(self, identity: Identity | None, token: str | None) -> None:
        self.identity = identity
        self.token = token


class _Server(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    def __init__(self, service: ScanService, address: str, certificates: Any, factory: _Authenticate) -> None:
        self.service = service
        self.location = address
        super().__init__(address, tls_certificates=certificates, middleware={"caller": factory})

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        return self._call(context, lambda who: self._info(descriptor, who))

    def get_schema(self, context: Any, descriptor: Any) -> Any:
        return self._call(
            context, lambda who: fl.SchemaResult(self.service.plan(_query(descriptor), who).schema)
        )

    def list_flights(self, context: Any, criteria: bytes) -> Iterator[Any]:
        def infos(who: Identity | None) -> list[Any]:
            out = []
            for name in self.service.datasets(who):
                try:
                    out.append(self._info(fl.FlightDescriptor.for_path(name), who))
                except (
                    DomaError
                ) as e:  # a damaged file, or one that needs a tree chosen: others are not blamed
                    log.info("not listed: %s", e.message)
            return out

        return iter(self._call(context, infos))

    def do_get(self, context: Any, ticket: Any) -> Any:
        def begin(who: Identity | None) -> Any:
            run = self.service.run(ticket.ticket, who)
            compression = None if run.compression == "none" else run.compression
            options = pa.ipc.IpcWriteOptions(compression=compression)
            return fl.GeneratorStream(
                run.schema, _Sender(run, options, self._token(context)), options=options
            )

        return self._call(context, begin)

    def list_actions(self, context: Any) -> Any:
        return ACTIONS

    def do_action(self, context: Any, action: Any) -> Any:
        body = action.body.to_pybytes() if action.body is not None else b""
        return self._call(context, lambda who: iter(self._act(action.type, body, who)))

    def _act(self, kind: str, body: bytes, who: Identity | None) -> list[Any]:
        if kind == "explain":
            answer: Any = self.service.explain(parse(body), who)
        elif kind == "stats":
            answer = self.service.stats(_number(body), who)
        elif kind == "cancel":
            self.service.cancel(_number(body), who)
            answer = {"cancelled": True}
        elif kind == "list":
            answer = {"datasets": self.service.datasets(who)}
        else:
            known = ", ".join(name for name, _ in ACTIONS)
            raise Unsupported(f"action {kind[:50]!r} is not offered; actions: {known}")
        return [fl.Result(jsontext.write(answer).encode())]

    def _info(self, descriptor: Any, who: Identity | None) -> Any:
        planned: Planned = self.service.plan(_query(descriptor), who)
        endpoints = [
            fl.FlightEndpoint(
                part.ticket,
                [self.location],
                None,
                json.dumps({"rows": part.rows, "files": part.files[:1]}).encode(),
            )
            for part in planned.parts
        ]
        about = json.dumps({"scan": planned.scan}).encode()
        return fl.FlightInfo(planned.schema, descriptor, endpoints, planned.rows, -1, True, about)

    def _call(self, context: Any, work: Callable[[Identity | None], T]) -> T:
        caller = context.get_middleware("caller")
        return _answered(lambda: work(caller.identity if caller else None), caller.token if caller else None)

    @staticmethod
    def _token(context: Any) -> str | None:
        caller = context.get_middleware("caller")
        return caller.token if caller else None


class _Sender:
    """Feeds a stream from a run; an abandoned stream drops it, which closes the run."""

    def __init__(self, run: Run, options: Any, token: str | None) -> None:
        self._run = run
        self._options = options
        self._token = token

    def __iter__(self) -> "_Sender":
        return self

    def __next__(self) -> Any:
        def step() -> Any:
            return next(self._run, None)

        batch = _answered(step, self._token)
        if batch is None:
            raise StopIteration
        self._run.stats.bytes_sent += _wire_size(batch, self._options)
        return batch

    def __del__(self) -> None:
        self._run.close()


def _answered(work: Callable[[], T], token: str | None = None) -> T:
    """The result of work done with the caller's token at hand; its error in Flight's terms."""
    mark = bearer.set(token)
    try:
        return work()
    except DomaError as e:
        raise to_flight(e) from e
    except Exception as e:  # the outermost line of a call: gRPC would show the client a traceback
        log.exception("a scan call failed")
        raise to_flight(DomaError("scan: internal error; the server's log has the cause")) from e
    finally:
        bearer.reset(mark)


def _wire_size(batch: pa.RecordBatch, options: Any) -> int:
    """Bytes of the batch's IPC message."""
    if options.compression is None:
        return int(pa.ipc.get_record_batch_size(batch))
    # Flight does not tell what it wrote: the message is made a second time to know its size.
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        start = sink.size()
        writer.write_batch(batch)
        return int(sink.size() - start)


def _query(descriptor: Any) -> Query:
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return parse(descriptor.command)
    path = [part.decode("utf-8", "replace") for part in descriptor.path]
    if not path:
        raise BadQuery("descriptor: neither a dataset name nor a query")
    return whole(path[0] if len(path) == 1 else "/" + "/".join(part.strip("/") for part in path))


def _number(body: bytes) -> str:
    if len(body) > 64:
        raise NotFound("scan: no scan of yours has this number")
    return body.decode("ascii", "replace")

"""What runs on a Dask worker: the task in a guarded child process, as on the service's own machine.

A hostile file takes down that child and nothing else. Orders and answers are JSON. The result is written
where the order says, on a shared file system, or uploaded to the one name that the order's token opens.
"""

import asyncio
import json
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from doma.columns.model import Outcome, Progress, Task
from doma.columns.worker import WorkerPool
from doma.core.errors import DomaError, StorageUnavailable, problem
from doma.store.http import HttpStore
from doma.store.protocol import PIECE


@dataclass(frozen=True, slots=True)
class Order:
    """A task for a Dask worker."""

    id: str
    task: dict[str, Any] = field(repr=False)
    topic: str
    """Where progress is told."""
    ca: str = ""
    """Authorities to trust, PEM; the service's files are not here."""
    upload: str = ""
    """Folder of the upload's name; empty: the output of the task is on a shared file system."""
    token: str = field(default="", repr=False)
    memory: int = 0
    silence: float = 30.0
    stall: float = 0.0


def work(text: str) -> str:
    """Run an order; ``{"outcome", "adler32"}`` or ``{"problem"}``."""
    from distributed import get_worker

    order = Order(**json.loads(text))
    worker: Any = get_worker()

    def tell(now: Progress) -> None:
        worker.log_event(order.topic, {"id": order.id, **asdict(now)})

    host = _host(worker.state.nthreads, order)
    return json.dumps(host.wait(order.id, host.run(order, tell)))


def stop(id_: str) -> None:
    """Stop an order, if it runs here."""
    if _hosts:
        _hosts[0].stop(id_)


class Host:
    """The child processes of one Dask worker, on an event loop in a thread of its own.

    Args:
        slots: Tasks at once.
        order: Any order, for the limits.
    """

    def __init__(self, slots: int, order: Order) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="doma-")
        self._place = Path(self._folder.name)
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, asyncio.Task[dict[str, Any]]] = {}
        threading.Thread(target=self._loop.run_forever, name="doma-columns", daemon=True).start()
        self._pool = WorkerPool(slots, order.memory, order.silence, order.stall)
        asyncio.run_coroutine_threadsafe(self._pool.start(), self._loop).result()

    def wait(self, id_: str, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Run a coroutine on the loop, so that :meth:`stop` finds it."""

        async def run() -> dict[str, Any]:
            self._tasks[id_] = task = asyncio.create_task(work)
            try:
                return await task
            except asyncio.CancelledError:
                return {"problem": problem(StorageUnavailable("columns: the order was stopped"))}
            finally:
                self._tasks.pop(id_, None)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def stop(self, id_: str) -> None:
        """Cancel an order."""

        def cancel() -> None:
            if (task := self._tasks.get(id_)) is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    async def run(self, order: Order, tell: Callable[[Progress], None]) -> dict[str, Any]:
        """Run the task and hand its result over."""
        task = _task(order, self._authorities(order.ca))
        output = Path(task.output)
        if order.upload:
            output = self._place / order.id
            task = replace(task, output=str(output))
        try:
            outcome = await self._pool.run(task, tell)
            digest = ""
            if not outcome.cached:
                digest = await asyncio.to_thread(adler32, output)
            if order.upload and not outcome.cached:
                await _uploaded(order, output, outcome, digest, task.ca_file)
        except DomaError as e:
            return {"problem": problem(e)}
        finally:
            if order.upload:
                output.unlink(missing_ok=True)
        return {"outcome": asdict(outcome), "adler32": digest}

    def _authorities(self, pem: str) -> str:
        path = self._place / f"{zlib.crc32(pem.encode()):x}.pem"
        if pem and not path.exists():
            path.write_text(pem)
        return str(path) if pem else ""


_hosts: list[Host] = []
_making = threading.Lock()


def _host(slots: int, order: Order) -> Host:
    with _making:
        if not _hosts:
            _hosts.append(Host(slots, order))
        return _hosts[0]


def _task(order: Order, ca_file: str) -> Task:
    fields = dict(order.task)
    for name in ("known", "allow"):
        fields[name] = tuple(fields[name])
    fields["replicas"] = tuple(map(tuple, fields["replicas"]))
    return Task(**{**fields, "ca_file": ca_file})


def adler32(path: Path) -> str:
    """The checksum of a local file, lower-case hex."""
    value = 1
    with path.open("rb") as file:
        while data := file.read(PIECE):
            value = zlib.adler32(data, value)
    return f"{value:08x}"


async def _uploaded(order: Order, output: Path, outcome: Outcome, digest: str, ca_file: str) -> None:
    async def token() -> str:
        return order.token

    store = HttpStore(order.upload, token=token, ca_file=ca_file or None)
    try:
        upload = await store.create(f"/{order.id}", size=outcome.bytes, checksums={"adler32": digest})
        try:
            with output.open("rb") as file:
                while data := await asyncio.to_thread(file.read, PIECE):
                    await upload.write(data)
            await upload.commit()
        finally:
            await upload.abort()
    finally:
        await store.close()

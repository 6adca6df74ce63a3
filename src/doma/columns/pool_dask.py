"""Column delivery on Dask: each file is one Dask task, run on a worker of any cluster that Dask can make.

The service stays the only one who publishes: a worker hands its result over under a name of its own, by
upload or on a shared file system, and the service looks at size and checksum before it takes it. While
there is no scheduler there are no slots, so nothing is claimed and nothing fails.
"""

import asyncio
import contextlib
import importlib
import json
import logging
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from doma.columns.model import Outcome, Progress, Task
from doma.columns.pool_dask_worker import Order, adler32, stop, work
from doma.columns.worker import WorkerPool
from doma.core.config import Columns
from doma.core.errors import (
    ChecksumMismatch,
    ConfigError,
    MissingExtra,
    ServiceUnavailable,
    WrongSize,
    from_problem,
)

log = logging.getLogger(__name__)

CLUSTERS = {
    "local": ("distributed", "LocalCluster", "facility"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster", "k8s"),
    "gateway": ("dask_gateway", "GatewayCluster", "gateway"),
    "htcondor": ("dask_jobqueue", "HTCondorCluster", "batch"),
    "slurm": ("dask_jobqueue", "SLURMCluster", "batch"),
}
"""Word of the configuration to module, class and the extra that brings it."""
LOOK = 5.0
"""Seconds between two looks at the scheduler."""
LIMIT = 10.0
"""Seconds that a scheduler may take to answer."""


@dataclass(frozen=True, slots=True)
class Handover:
    """How results come from workers that share no file system with us."""

    url: str
    """https URL of a folder that workers may write to, each its own name."""
    folder: Path
    """The same folder here."""
    sign: Callable[[str, float], str]
    """``(name, seconds)``: a token that writes this name and nothing else."""


class DaskPool:
    """Dask workers behind the :class:`doma.columns.model.Pool` Protocol.

    Args:
        section: The section of column delivery.
        handover: How results come; None: workers write to the output's path, on a shared file system.

    Raises:
        MissingExtra: Dask or what the configured cluster needs is not installed.
    """

    def __init__(self, section: Columns, handover: Handover | None) -> None:
        self._section, self._handover = section, handover
        self._distributed = _module("distributed", "facility")
        module, name, extra = CLUSTERS[section.dask.cluster]
        self._made_by = None if section.dask.scheduler else getattr(_module(module, extra), name)
        self._client: Any = None
        self._cluster: Any = None
        self._refused = 0  # clusters that could not be made, one after the other
        self._slots = 0
        self._topic = f"doma-columns-{secrets.token_hex(8)}"
        self._tells: dict[str, Callable[[Progress], None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        # Names are checked here: a check must not wait for a cluster.
        self._checks = WorkerPool(1, section.worker_memory, section.lease, section.stall)

    @property
    def slots(self) -> int:
        return self._slots

    async def start(self) -> None:
        """Begin to look for the scheduler, or make the cluster; both may take their time."""
        if self._looking is None:
            await self._checks.start()
            self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Give up the tasks, and the cluster if it was made here. Idempotent."""
        looking, self._looking = self._looking, None
        if looking is not None:
            self._gone.set()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        await self._checks.stop()
        await self._disconnect()
        await self._give_up()

    async def run(self, task: Task, tell: Callable[[Progress], None] | None = None) -> Outcome:
        """Run one file on some Dask worker."""
        if not task.output:
            return await self._checks.run(task, tell)
        client = self._client
        if client is None:
            raise ServiceUnavailable("columns: there is no Dask scheduler at the moment; trying again")
        order = await asyncio.to_thread(self._order, task)
        if tell is not None:
            self._tells[order.id] = tell
        ended = False
        text, key = json.dumps(asdict(order)), f"doma-{order.id}"
        try:
            future = client.submit(work, text, key=key, pure=False, retries=0)
        except self._distributed.client.ClosedClientError as e:
            self._tells.pop(order.id, None)
            self._lost()
            raise ServiceUnavailable("columns: the Dask scheduler is lost; trying again") from e
        try:
            answer = await self._answer(future, task.url)
            ended = True
            if "problem" in answer:
                raise from_problem(answer["problem"], int(answer["problem"].get("status", 500)))
            return await asyncio.to_thread(self._received, order, task, answer)
        finally:
            self._tells.pop(order.id, None)
            if not ended:
                await self._stopped(client, future, order.id)
            future.release()

    async def _answer(self, future: Any, url: str) -> dict[str, Any]:
        try:
            error = await future.exception()
            text = "" if error is not None else await future
        except (self._distributed.client.FutureCancelledError, OSError, TimeoutError) as e:
            self._lost()
            raise ServiceUnavailable(f"{url}: the Dask scheduler lost the task; trying again") from e
        if error is not None:
            raise ServiceUnavailable(
                f"{url}: the Dask worker failed: {type(error).__name__}: {str(error)[:200]};"
                " workers need the same doma as the service"
            )
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def _stopped(self, client: Any, future: Any, id_: str) -> None:
        """End what a worker still does for us; without scheduler nobody is left to be told."""
        with contextlib.suppress(OSError, TimeoutError, ValueError, RuntimeError):  # the last: it is closed
            async with asyncio.timeout(LIMIT):
                await future.cancel()
                await client.run(stop, id_, on_error="ignore")

    def _order(self, task: Task) -> Order:
        id_, ca = secrets.token_hex(16), Path(task.ca_file).read_text() if task.ca_file else ""
        fields = {**asdict(task), "ca_file": ""}
        c = self._section
        base = Order(id_, fields, self._topic, ca, "", "", c.worker_memory, c.lease, c.stall)
        if self._handover is None:
            return base
        token = self._handover.sign(id_, 2 * task.timeout + 3600)
        return replace(base, task={**fields, "output": "-"}, upload=self._handover.url, token=token)

    def _received(self, order: Order, task: Task, answer: dict[str, Any]) -> Outcome:
        """The outcome, once its file lies at the task's output and is what the worker says."""
        fields = answer["outcome"]
        outcome = Outcome(**{**fields, "columns": tuple(fields["columns"])})
        if outcome.cached:
            return outcome
        output = Path(task.output)
        if self._handover is not None:
            shutil.move(self._handover.folder / order.id, output)
        size = output.stat().st_size
        if size != outcome.bytes:
            raise WrongSize(f"{task.url}: the worker's result has {size} bytes, not {outcome.bytes}")
        if (digest := adler32(output)) != answer["adler32"]:
            raise ChecksumMismatch(
                f"{task.url}: the worker's result has adler32 {digest}, not {answer['adler32']}"
            )
        return outcome

    async def _look(self) -> None:
        said = ""
        while self._looking is not None:  # a cluster's library may lose that we were cancelled
            try:
                if self._client is None:
                    await self._connect()
                async with asyncio.timeout(LIMIT):
                    known = await self._client.scheduler.identity()
                self._slots = sum(int(w["nthreads"]) for w in known["workers"].values())
            except Exception as e:  # noqa: BLE001 - outermost loop: a cluster's library may raise anything
                if (why := f"{type(e).__name__}: {e}") != said:
                    log.warning("columns: no Dask scheduler: %s; trying again", why)
                said = why
                await self._disconnect()
            else:
                said = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK if self._slots else LOOK / 5 * 2 ** min(self._refused, 6)):
                    await self._gone.wait()
            self._gone.clear()

    def _lost(self) -> None:
        """Claim nothing until a look has found the scheduler again."""
        self._slots = 0
        self._gone.set()

    async def _connect(self) -> None:
        dask = self._section.dask
        if not dask.scheduler and self._cluster is None:
            self._refused += 1
            self._cluster = await asyncio.to_thread(self._made)
            self._refused = 0
        address = dask.scheduler or self._cluster.scheduler_address
        security = getattr(self._cluster, "security", None)
        more = {} if security is None else {"security": security}
        try:
            self._client = await self._distributed.Client(
                address, asynchronous=True, set_as_default=False, timeout=LIMIT, name="doma-columns", **more
            )
        except (OSError, TimeoutError):
            await self._give_up()  # it ended, with whatever made it: the next look makes another
            raise
        self._client.subscribe_topic(self._topic, self._told)

    def _made(self) -> Any:
        """The cluster of the configuration: a class of the list, its options as they are written there."""
        dask = self._section.dask
        assert self._made_by is not None
        try:
            cluster = self._made_by(**dask.options)
        except TypeError as e:
            name = self._made_by.__name__
            raise ConfigError(f"columns.dask.options: {name} does not take them: {e}") from e
        if dask.cluster != "local":
            cluster.scale(dask.workers)
        return cluster

    async def _give_up(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is None:
            return
        try:
            await asyncio.to_thread(cluster.close)
        except Exception as e:  # noqa: BLE001 - what is gone cannot be closed, and each library says so its own way
            log.warning("columns: the Dask cluster cannot be closed: %s: %s", type(e).__name__, e)

    async def _disconnect(self) -> None:
        client, self._client, self._slots = self._client, None, 0
        if client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await client.close(timeout=2)

    def _told(self, event: tuple[float, Any]) -> None:
        facts = dict(event[1])
        tell = self._tells.get(facts.pop("id", ""))
        if tell is not None:
            tell(Progress(**facts))


def _module(name: str, extra: str) -> Any:
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        what = name.partition(".")[0]
        raise MissingExtra(
            f"columns.pool: {what} is missing; install the extra: pip install 'doma-hep[{extra}]'"
        ) from e
    finally:
        # The import of dask_jobqueue takes the interrupt, for which it must be in the main thread.
        if signal.getsignal(signal.SIGINT) is not interrupt:
            signal.signal(signal.SIGINT, interrupt)

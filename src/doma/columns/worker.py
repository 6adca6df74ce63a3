"""The pool of warm worker processes: one file each at a time, watched, killed when it hangs, replaced.

A worker is forked from a process that has done all imports (:mod:`doma.columns.template`), which takes
milliseconds. It is spoken to in JSON lines over a socket. A worker that dies, shows no sign of life or
exceeds the wall-clock limit of its task is killed and replaced; the task fails with an error that allows
another try.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from doma.columns.model import Outcome, Progress, Task
from doma.columns.template import Template
from doma.core.errors import OriginFailed, ServiceUnavailable, TimedOut, from_problem

Tell = Callable[[Progress], None]

BEAT = 1.0
START = 60.0
"""Seconds that the imports may take."""


class WorkerPool:
    """Warm workers behind the :class:`doma.columns.model.Pool` Protocol.

    Args:
        slots: Processes.
        memory: Address space one may grow by, in bytes; 0: no limit.
        silence: Seconds without a sign of life after which a worker counts as hung.
        stall: Seconds in which a file must move by a byte or an event; 0: no limit.

    Checks of names (tasks without output) never wait for files: there is one process more than slots.
    """

    def __init__(
        self, slots: int = 2, memory: int = 4 << 30, silence: float = 30.0, stall: float = 0.0
    ) -> None:
        self._slots, self._silence, self._stall = slots, silence, stall
        # Often enough for progress to be shown every second.
        self._template = Template(min(silence / 4, BEAT), memory)
        self._free: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._stopped = True
        self._open()

    def _open(self) -> None:
        self._processes = asyncio.Semaphore(self._slots + 1)
        self._room, self._checks = asyncio.Semaphore(self._slots), asyncio.Semaphore(min(2, self._slots))

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return tuple(w.pid for w in self._all if w.pid)

    async def start(self) -> None:
        """Start the process that workers are forked from; it becomes warm in the background."""
        if not self._stopped:
            return
        self._stopped = False
        self._open()
        self._free = [self._made() for _ in range(self._slots + 1)]
        await self._template.start()

    async def stop(self) -> None:
        """Kill every worker. Idempotent."""
        self._stopped = True
        workers, self._all = self._all, set()
        self._free = []
        await asyncio.gather(*(w.kill() for w in workers))
        await self._template.stop()

    async def run(self, task: Task, tell: Tell | None = None) -> Outcome:
        """Run a task on the next free worker."""
        if self._stopped:
            raise ServiceUnavailable("columns: the workers are stopped; try again later")
        async with self._room if task.output else self._checks, self._processes:
            if self._stopped:
                raise ServiceUnavailable("columns: the workers are stopped; try again later")
            worker = max(self._free, key=lambda w: (w.ready, w.pid))
            self._free.remove(worker)
            try:
                async with asyncio.timeout(START + task.timeout):
                    await worker.launch()
                return await worker.run(task, tell)
            except TimeoutError as e:
                raise ServiceUnavailable(
                    "columns: a worker process does not start; see the server's log"
                ) from e
            finally:
                await self._returned(worker)

    async def _returned(self, worker: "_Worker") -> None:
        """A worker that is not idle and well is killed; another one takes its place."""
        if worker.idle:
            self._free.append(worker)
            return
        self._all.discard(worker)
        if not self._stopped:
            self._free.append(self._made())
        await worker.kill()

    def _made(self) -> "_Worker":
        worker = _Worker(self._template, self._silence, self._stall)
        self._all.add(worker)
        return worker


class _Worker:
    """One child process."""

    def __init__(self, template: Template, silence: float, stall: float) -> None:
        self._template, self._silence, self._stall = template, silence, stall
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.pid = 0
        self.ready = False
        self._number = 0
        self.idle = True

    async def launch(self) -> None:
        """Start the process unless it runs. Raises ServiceUnavailable. Idempotent."""
        if self._streams is not None:
            if not self._streams[0].at_eof():
                return  # it lives
            self._streams[1].transport.abort()
        try:
            self.pid, reader, writer = await self._template.fork()
        except OSError as e:
            raise ServiceUnavailable("columns: a worker process does not start; see the server's log") from e
        self._streams, self.ready = (reader, writer), False

    async def run(self, task: Task, tell: Tell | None) -> Outcome:
        """Run one task; on any doubt the worker is left not idle, and its owner kills it."""
        self.idle = False
        self._number += 1
        assert self._streams is not None
        reader, writer = self._streams
        line = json.dumps({"id": self._number, "task": asdict(task)}).encode() + b"\n"
        try:
            async with asyncio.timeout(task.timeout + (0 if self.ready else START)):
                writer.write(line)
                await writer.drain()
                answer = await self._answer(reader, task, tell)
        except TimeoutError as e:
            raise TimedOut(
                f"{task.url}: not finished after {task.timeout:.0f} s; the worker was stopped"
            ) from e
        except OSError as e:
            raise ServiceUnavailable(f"{task.url}: the worker process died; trying again") from e
        self.idle = not answer.get("spent")
        if "problem" in answer:
            raise from_problem(answer["problem"], int(answer["problem"].get("status", 500)))
        fields: dict[str, Any] = answer["outcome"]
        return Outcome(**{**fields, "columns": tuple(fields["columns"])})

    async def _answer(self, reader: asyncio.StreamReader, task: Task, tell: Tell | None) -> dict[str, Any]:
        time = asyncio.get_running_loop().time
        # Foreign code has a limit of its own; while it computes, nothing moves.
        stall = 0.0 if task.sandbox else self._stall
        last, moved = Progress(), time()
        while True:
            silence = self._silence if self.ready else START
            try:
                async with asyncio.timeout(silence):
                    line = await reader.readline()
            except TimeoutError as e:
                raise ServiceUnavailable(f"columns: a worker was silent for {silence:.0f} s; stopped") from e
            except ValueError as e:
                raise OriginFailed("columns: a worker gave an answer that is too long") from e
            if not line:
                raise ServiceUnavailable("columns: the worker process died while it read the file")
            answer: dict[str, Any] = json.loads(line)
            self.ready = self.ready or "ready" in answer
            if answer.get("id") == self._number:
                return answer
            if "beat" not in answer:
                moved = time()  # it has become ready
                continue
            now = Progress(**answer["beat"])
            if now != last:
                last, moved = now, time()
                if tell is not None:
                    tell(now)
            elif stall and self.ready and time() - moved > stall:
                raise TimedOut(
                    f"{task.url}: neither a byte nor an event moved for {stall:.0f} s"
                    f" ({now.events} events, {now.read} bytes so far); the worker was stopped"
                )

    async def kill(self) -> None:
        """End the process and wait for it. Idempotent."""
        pid, streams, self.pid, self._streams = self.pid, self._streams, 0, None
        self.idle = False
        if streams is not None:
            streams[1].transport.abort()
            await self._template.kill(pid)

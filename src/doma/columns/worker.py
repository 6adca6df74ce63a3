"""The pool of warm worker processes: one file each at a time, watched, killed when it hangs, replaced.

A worker is a child process that has done its imports (``doma.columns.process``). It is spoken to in JSON
lines over pipes. A worker that dies, shows no sign of life or exceeds the wall-clock limit of its task is
killed and replaced; the task fails with an error that allows another try.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from doma.columns.model import Outcome, Progress, Task
from doma.core.errors import OriginFailed, ServiceUnavailable, TimedOut, from_problem

log = logging.getLogger(__name__)

Tell = Callable[[Progress], None]

LINE = 1 << 20
"""Longest answer line."""
BEAT = 1.0
START = 60.0
"""Seconds that the imports of a worker may take."""
KEPT = {"PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
"""What a worker sees of our environment: no secret."""
SOURCES = str(Path(__file__).parents[2])


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
        self._slots, self._memory, self._silence, self._stall = slots, memory, silence, stall
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
        """Start the processes; they become warm in the background."""
        if not self._stopped:
            return
        self._stopped = False
        self._open()
        self._free = [self._made() for _ in range(self._slots + 1)]
        # The last one begins when all others have work.
        await asyncio.gather(*(w.launch() for w in self._free[: self._slots]))

    async def stop(self) -> None:
        """Kill every worker. Idempotent."""
        self._stopped = True
        workers, self._all = self._all, set()
        self._free = []
        await asyncio.gather(*(w.kill() for w in workers))

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
                    if self._room.locked():
                        await asyncio.gather(*(w.launch() for w in self._free))
                return await worker.run(task, tell)
            except TimeoutError as e:
                raise ServiceUnavailable(
                    "columns: a worker process does not start; see the server's log"
                ) from e
            finally:
                await self._returned(worker)

    async def _returned(self, worker: "_Worker") -> None:
        """A worker that is not idle and well is killed; another one, already warming up, takes its place."""
        if worker.idle:
            self._free.append(worker)
            return
        self._all.discard(worker)
        if not self._stopped:
            self._free.append(fresh := self._made())
            await asyncio.gather(worker.kill(), fresh.launch())
        else:
            await worker.kill()

    def _made(self) -> "_Worker":
        worker = _Worker(self._memory, self._silence, self._stall)
        self._all.add(worker)
        return worker


class _Worker:
    """One child process."""

    def __init__(self, memory: int, silence: float, stall: float) -> None:
        self._memory, self._silence, self._stall = memory, silence, stall
        self._process: asyncio.subprocess.Process | None = None
        self.ready = False
        self._launching = asyncio.Lock()
        self._number = 0
        self.idle = True

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def launch(self) -> None:
        """Start the process unless it runs. Idempotent."""
        async with self._launching:
            if self._process is not None and self._process.returncode is None:
                return
            keep = {k: v for k, v in os.environ.items() if k in KEPT}
            # Often enough for progress to be shown every second.
            beat = min(self._silence / 4, BEAT)
            arguments = ["-m", "doma.columns.process", str(beat), str(self._memory)]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**keep, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
                limit=LINE,
                # Its own session: a Ctrl-C at the terminal is for the service, which ends us in good order.
                start_new_session=True,
            )
            self.ready = False

    async def run(self, task: Task, tell: Tell | None) -> Outcome:
        """Run one task; on any doubt the worker is left not idle, and its owner kills it."""
        self.idle = False
        self._number += 1
        process = self._process
        assert process is not None
        assert process.stdin is not None
        line = json.dumps({"id": self._number, "task": asdict(task)}).encode() + b"\n"
        try:
            async with asyncio.timeout(task.timeout + (0 if self.ready else START)):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await self._answer(process, task, tell)
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

    async def _answer(
        self, process: asyncio.subprocess.Process, task: Task, tell: Tell | None
    ) -> dict[str, Any]:
        assert process.stdout is not None
        time = asyncio.get_running_loop().time
        # Foreign code has a limit of its own; while it computes, nothing moves.
        stall = 0.0 if task.sandbox else self._stall
        last, moved = Progress(), time()
        while True:
            silence = self._silence if self.ready else START
            try:
                async with asyncio.timeout(silence):
                    line = await process.stdout.readline()
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
        process, self._process = self._process, None
        self.idle = False
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        # Drop what it still said, so that the pipe's transport closes.
        if process.stdout is not None:
            with contextlib.suppress(ValueError):
                await process.stdout.read()

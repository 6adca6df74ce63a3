"""The process that worker processes are forked from: imports are done once, and their memory is shared.

It runs :mod:`doma.columns.process`, reads no file itself and stays without threads of its own making (the one
of Arrow's jemalloc is stopped and started around a fork by jemalloc). Over a socket it is told to fork, with
the descriptor of the new worker's socket, or to kill one of its children, and it answers with a process id,
or with the negative number of an error. When the socket ends, or the process does, all workers end. One that
does not answer is ended and started anew.
"""

import asyncio
import contextlib
import os
import socket
import struct
import sys
from pathlib import Path

Streams = tuple[int, asyncio.StreamReader, asyncio.StreamWriter]
LINE = 1 << 20
"""Longest line of a worker."""
WORD = struct.Struct("<i")
FORK = 0
"""The word for a fork; any other one is the process id of a child to be killed."""
KEPT = {"PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
"""What a worker sees of our environment: no secret."""
WARMING, PATIENCE = 60.0, 10.0
"""Seconds that its first answer may take, with the imports before it, and every later one."""
SOURCES = str(Path(__file__).parents[2])


class Template:
    """The service's side of it.

    Args:
        beat: Seconds between two signs of life of a worker.
        memory: Address space that a worker may grow by, in bytes; 0: no limit.
    """

    def __init__(self, beat: float, memory: int) -> None:
        self._arguments = "-m", "doma.columns.process", str(beat), str(memory)
        self._process: asyncio.subprocess.Process | None = None
        self._link: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._stopped = False
        self._patience = WARMING

    @property
    def pid(self) -> int:
        """Process id; 0: none runs."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the process, which does its imports while we go on. Idempotent."""
        async with self._lock:
            self._stopped = False
            await self._begin()

    async def fork(self) -> Streams:
        """A new worker: its process id and its streams.

        Raises:
            OSError: the process cannot be started, or died twice, or there is no room for one more.
        """
        # Who is cancelled must not leave an answer behind for the next one to ask.
        work = asyncio.ensure_future(self._forked())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_unwanted)
            raise

    async def kill(self, pid: int) -> None:
        """End a worker and wait for it. Idempotent."""
        await asyncio.shield(asyncio.ensure_future(self._killed(pid)))

    async def stop(self) -> None:
        """End the process, and with it every worker. Idempotent."""
        self._stopped = True
        process, link = self._process, self._link
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if link is not None:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # who waits for an answer sees the end
        async with self._lock:
            await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _begin(self) -> None:
        if self._stopped:
            raise ConnectionError("the workers are stopped")
        if self._process is not None and self._process.returncode is None:
            return
        await self._end()
        self._patience = WARMING
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        keep = {k: v for k, v in os.environ.items() if k in KEPT}
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=theirs.fileno(),
                env={**keep, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
                # Its own session: a Ctrl-C at the terminal is for the service, which ends us in good order.
                start_new_session=True,
            )

    async def _forked(self) -> Streams:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = await self._child(theirs.fileno())
            except BaseException:  # whatever it is: its socket is closed, and it goes on
                ours.close()
                raise
        return pid, *await asyncio.open_unix_connection(sock=ours, limit=LINE)

    async def _child(self, fd: int) -> int:
        async with self._lock:
            await self._begin()
            try:
                pid = await self._word(FORK, fd)
            except OSError:
                await self._end()
                await self._begin()
                pid = await self._word(FORK, fd)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    async def _killed(self, pid: int) -> None:
        async with self._lock:
            try:
                await self._word(pid)
            except OSError:
                await self._end()  # and with it the worker

    async def _word(self, word: int, *fds: int) -> int:
        if self._link is None:
            raise ConnectionError("the template of the workers has ended")
        socket.send_fds(self._link, [WORD.pack(word)], fds)
        async with asyncio.timeout(self._patience):
            answer = await asyncio.get_running_loop().sock_recv(self._link, WORD.size)
        self._patience = PATIENCE
        if len(answer) != WORD.size:
            raise ConnectionError("the template of the workers has ended")
        return int(WORD.unpack(answer)[0])


def _unwanted(work: "asyncio.Future[Streams]") -> None:
    """Its end of the socket closed, a worker leaves."""
    if not work.cancelled() and work.exception() is None:
        work.result()[2].close()

"""The child's side of the worker pool: reads tasks as JSON lines, runs them one by one, answers.

The process that is started does the imports, once, and then forks a worker for every socket that it is
given (:mod:`doma.columns.template`). In a worker a thread watches the socket: when it ends, the service is
gone and the process leaves at once, whatever it is doing. A second thread says every few seconds, while
there is a task, that the process lives.

Lines in: ``{"id", "task"}``. Lines out: ``{"ready"}``, ``{"beat": progress}``, ``{"id", "outcome"}`` or
``{"id", "problem"}``. JSON, not pickle: what comes from a process that read a hostile file is only data.
"""

import contextlib
import errno
import gc
import importlib
import json
import os
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, BinaryIO, NoReturn

from doma.columns.execute import execute
from doma.columns.model import Progress, Task
from doma.columns.remote import Bytes
from doma.columns.sandbox_seal import dies_with_parent
from doma.core.errors import CorruptFile, DomaError, LimitExceeded, problem

WARM = ("doma.columns.funcadl", "doma.columns.source_root", "doma.columns.sink_parquet")


_WORD = struct.Struct("<i")


def main(beat: float, memory: int) -> None:
    """Fork workers until the standard input, a socket, ends.

    Args:
        beat: Seconds between two signs of life of a worker.
        memory: Bytes by which the address space of a worker may grow; 0: no limit.
    """
    link = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # A print of some library goes to the log.
    os.dup2(2, 1)
    warm()
    gc.collect()
    gc.freeze()  # or every worker would copy all pages at its first collection
    alive: set[int] = set()
    me = os.getpid()
    signal.signal(signal.SIGCHLD, lambda *_: _reap(alive))
    while True:
        word, fds, _, _ = socket.recv_fds(link, _WORD.size, 1)
        if len(word) < _WORD.size:
            os._exit(0)
        (pid,) = _WORD.unpack(word)
        # Between a look at the set and what follows from it nobody is reaped, so no process id is used anew.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if fds:
            pid = _forked()
            if pid == 0:
                link.close()
                _born(me, fds[0], beat, memory)
            if pid > 0:
                alive.add(pid)
            os.close(fds[0])
        elif pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            alive.discard(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        link.sendall(_WORD.pack(pid))


def _forked() -> int:
    """As ``fork``; where there is no room for one more process, the negative number of the error."""
    try:
        return os.fork()
    except OSError as e:
        return -(e.errno or errno.EAGAIN)


def _reap(alive: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while alive and (pid := os.waitpid(-1, os.WNOHANG)[0]):
            alive.discard(pid)


def _born(parent: int, fd: int, beat: float, memory: int) -> None:
    """A new worker: in its own session, and gone when the template is."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.setsid()
        if sys.platform.startswith("linux"):
            dies_with_parent()
            if os.getppid() != parent:
                return  # it ended before that was said
        work(fd, beat, memory)
    finally:
        os._exit(1)


def work(fd: int, beat: float, memory: int) -> NoReturn:
    """Serve one task after the other until the socket ends."""
    source, out = os.fdopen(os.dup(fd), "rb"), os.fdopen(fd, "wb", buffering=0)
    lock = threading.Lock()

    def say(line: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(line).encode() + b"\n")

    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, tasks), daemon=True).start()
    progress, data = list[Progress](), list[Bytes]()
    threading.Thread(target=_pulse, args=(say, progress, data, beat), daemon=True).start()
    _limit(memory)
    say({"ready": os.getpid()})
    while True:
        order = tasks.get()
        progress[:] = [Progress()]
        answer = _answer(order["task"], progress, data.append)
        # What a beat said now would be taken for the next task's.
        progress.clear()
        data.clear()
        say({"id": order["id"], **answer})


def warm() -> None:
    """Import what most files need: it takes a second, which no file should wait for."""
    # Arrow's own allocator keeps what was freed: 20 to 30 MiB of a worker's peak, and it is not quicker here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    for name in WARM:
        importlib.import_module(name)


def _answer(
    fields: dict[str, Any], progress: list[Progress], opened: Callable[[Bytes], None]
) -> dict[str, Any]:
    for name in ("known", "allow"):
        fields[name] = tuple(fields[name])
    fields["replicas"] = tuple(map(tuple, fields["replicas"]))
    task = Task(**fields)

    def seen(now: Progress) -> None:
        progress[0] = now

    try:
        return {"outcome": asdict(execute(task, seen, opened))}
    except DomaError as e:
        return {"problem": problem(e)}
    except MemoryError:
        text = (
            f"{task.url}: it needs more memory than a worker may take; select fewer columns or lower the step"
        )
        # The heap is in pieces now, the next file would fail as well: the parent replaces a spent worker.
        return {"problem": problem(LimitExceeded(text)), "spent": True}
    except Exception as e:  # noqa: BLE001 - outermost loop: a broken file can raise anything in its decoder
        last = traceback.format_exception(e)[-3:]
        text = f"{task.url}: reading failed: {type(e).__name__}: {str(e)[:300]}".splitlines()[0]
        return {"problem": problem(CorruptFile(text, trace="".join(last)[-2000:]))}
    finally:
        if task.output and not sys.is_finalizing():
            sys.stderr.flush()


def _listen(source: BinaryIO, tasks: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in source:
        tasks.put(json.loads(line))
    os._exit(0)


def _pulse(say: Any, progress: list[Progress], data: list[Bytes], beat: float) -> None:
    pause = threading.Event()
    while not pause.wait(beat):
        try:
            now = next(iter(progress), None)
            if now is None:
                continue
            # Bytes move in the middle of a step, too.
            taken = max([now.read, *(d.taken for d in list(data))])
            say({"beat": asdict(replace(now, read=taken))})
        except OSError:
            os._exit(0)


def _limit(memory: int) -> None:
    if not memory or not sys.platform.startswith("linux"):
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ValueError):  # a lower hard limit is in force already
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

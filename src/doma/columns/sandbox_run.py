"""One run of a function: the sockets of it, the clock, and what came out, none of it believed."""

import contextlib
import json
import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doma.columns import sandbox_view
from doma.columns.evaluate import Table
from doma.columns.remote import Bytes
from doma.columns.sandbox_arrow import columns
from doma.columns.sandbox_input import Giver
from doma.core.errors import BadQuery, LimitExceeded, ServiceUnavailable
from doma.core.text import printed

TAIL = 64 << 10
"""Bytes of what a function printed that are kept."""
FRAME = 64 << 10
BODY = 256 << 20
"""Largest batch that is taken from a function."""
LINKS = 4
TICK = 0.25
ENTRY = 1024
"""Bytes that a file counts at least: a million empty ones take a disk's index."""
DEPTH = 50
"""Levels of folders in a work folder."""
PATIENCE = 10.0
"""Seconds for a killed run to be gone."""

Feed = Callable[[str, Table], None]
Begin = Callable[[dict[str, Any], tuple[int, ...]], None]
"""Starts a run with these descriptors."""
End = Callable[[bool], int]
"""Waits for the end of a run, or kills it; its exit code."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """How functions are isolated, and their limits."""

    kind: str
    memory: int = 2 << 30
    """Bytes of address space."""
    seconds: int = 300
    """Wall clock, and as much processor time."""
    output: int = 2 << 30
    """Bytes of results."""
    scratch: int = 256 << 20
    """Bytes of files in the work folder."""
    uids: int = 0x70000000
    """First of the user ids that runs get where the server is root: this plus the worker's process id."""

    def text(self) -> str:
        """As JSON, for a task."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Isolation":
        """From its text."""
        return cls(**json.loads(text))


class Run:
    """One run: its sockets, what it printed, and its folder where it needs one."""

    def __init__(self, limits: Isolation, data: Bytes, feed: Feed, tick: Callable[[], None]) -> None:
        self._limits, self._data, self._feed, self._tick = limits, data, feed, tick
        self._uid = self._limits.uids + os.getpid() if os.geteuid() == 0 else 0
        self._deadline = time.monotonic() + self._limits.seconds
        self._folder: Path | None = None
        self._giver: Giver | None = None
        self._printed = bytearray()
        self._taken = 0
        self._next = 0.0
        self._result, self._theirs = socket.socketpair()

    @property
    def log(self) -> str:
        """The last of what the function printed."""
        return printed(bytes(self._printed[-TAIL:]))

    def go(self, source: str, name: str, begin: Begin, end: End) -> str:
        """Run it; what it printed. See :meth:`doma.columns.sandbox.Sandbox.run`."""
        order: dict[str, Any] = {
            "kind": self._limits.kind, "source": source, "name": name, "size": self._data.size, "path": "",
            "uid": self._uid, "memory": self._limits.memory, "seconds": self._limits.seconds, "tasks": 64,
            "scratch": sandbox_view.WORK, "scratch_size": self._limits.scratch, "read": sandbox_view.places(),
        }  # fmt: skip
        pairs = []
        if self._limits.kind == "bubblewrap":
            pairs = [socket.socketpair() for _ in range(LINKS)]
            self._giver = Giver(self._data, [ours for ours, _ in pairs])
        else:
            order.update(self._files(name))
        reading, writing = os.pipe()
        keeper = threading.Thread(target=self._keep, args=(reading,), daemon=True)
        keeper.start()
        try:
            begin(order, (self._theirs.fileno(), writing, *(t.fileno() for _, t in pairs)))
        finally:
            os.close(writing)
            self._theirs.close()
            for _, theirs in pairs:
                theirs.close()
        last: dict[str, Any] = {}
        finished = False
        try:
            last = self._frames()
            finished = True
        finally:
            code = end(not finished)
            keeper.join(PATIENCE)
        self._judge(last, code)
        return self.log

    def close(self) -> None:
        """Free everything. Idempotent."""
        self._result.close()
        self._theirs.close()
        if self._giver is not None:
            self._giver.close()
        if self._folder is not None:
            remove(self._folder)

    def _frames(self) -> dict[str, Any]:
        """Take the batches; the last frame, empty if the process ended without one."""
        while True:
            head = self._exactly(4)
            size = int.from_bytes(head or b"", "little")
            if head is None or size > FRAME:
                return {}
            try:
                frame = json.loads(bytes(self._exactly(size) or b"{}"))
            except (ValueError, RecursionError) as e:
                raise self._strange() from e
            if not isinstance(frame, dict):
                raise self._strange()
            if "tree" not in frame:
                return frame
            tree, length = frame["tree"], frame.get("size")
            if not isinstance(tree, str) or not tree.isprintable() or not 0 < len(tree) <= 200:
                raise BadQuery(f"{self._data.url}: the function's result has a tree without a usable name")
            if type(length) is not int or length < 0:
                raise self._strange()
            self._taken += length
            if length > BODY or self._taken > self._limits.output:
                raise LimitExceeded(
                    f"{self._data.url}: its result is larger than {self._limits.output >> 20} MiB, "
                    "or one row of it than 256 MiB; return less"
                )
            body = self._exactly(length)
            if body is None:
                return {}
            self._feed(tree, columns(body, f"{self._data.url}, tree {tree!r}"))

    def _strange(self) -> BadQuery:
        return BadQuery(f"{self._data.url}: the function broke what passes on its result")

    def _exactly(self, size: int) -> bytearray | None:
        """So many bytes of the result; None if it ends before. Looks at the clock meanwhile."""
        data = bytearray()
        while len(data) < size:
            ready = select.select([self._result], [], [], TICK)[0]
            if time.monotonic() > self._next:  # however many bytes come meanwhile
                self._look()
                self._next = time.monotonic() + TICK
            if not ready:
                continue
            more = self._result.recv(min(1 << 20, size - len(data)))
            if not more:
                return None
            data += more
        return data

    def _look(self) -> None:
        self._tick()
        if time.monotonic() > self._deadline:
            raise LimitExceeded(
                f"{self._data.url}: the function did not finish in {self._limits.seconds} s; it was stopped"
            )
        if self._folder is not None and not fits(self._folder / "work", self._limits.scratch):
            raise LimitExceeded(
                f"{self._data.url}: the function wrote more than {self._limits.scratch >> 20} MiB of files, "
                "too many of them, or folders that cannot be listed"
            )

    def _files(self, name: str) -> dict[str, Any]:
        """The input as a file, and a folder to write into, for a run without namespaces."""
        self._folder = Path(tempfile.mkdtemp(prefix=f"doma-python-{os.getpid()}-"))
        path, work = self._folder / name, self._folder / "work"
        work.mkdir(0o700)
        with path.open("xb") as file:
            for start in range(0, self._data.size, 4 << 20):
                file.write(self._data.read(start, min(self._data.size, start + (4 << 20))))
                if time.monotonic() > self._deadline:
                    self._look()
        path.chmod(0o400)
        if self._uid:
            for place in (self._folder, path, work):
                os.chown(place, self._uid, self._uid)
        return {"path": str(path), "scratch": str(work)}

    def _keep(self, reading: int) -> None:
        """Read what is printed to its end, and keep the last of it."""
        with open(reading, "rb", buffering=0) as file:
            while data := file.read(64 << 10):
                self._printed += data
                if len(self._printed) > 4 * TAIL:
                    del self._printed[:-TAIL]

    def _judge(self, last: dict[str, Any], code: int) -> None:
        """Raise what a run came to, unless it is done."""
        url = self._data.url
        if self._giver is not None and self._giver.failure is not None:
            # Also when the function went on without those bytes: its result would depend on the weather.
            raise self._giver.failure
        if "done" in last:
            return
        if "broken" in last:
            raise ServiceUnavailable(f"python: the sandbox cannot be built: {_line(last['broken'])}")
        if last.get("memory") is True:
            raise LimitExceeded(
                f"{url}: the function needs more memory than {self._limits.memory >> 20} MiB; "
                "read fewer columns or smaller steps"
            )
        if "raised" in last:
            raise BadQuery(f"{url}: {_line(last['raised'])}")
        if code == 128 + 24:
            raise LimitExceeded(
                f"{url}: the function took more than {self._limits.seconds} s of processor time"
            )
        if code == 128 + 25:
            raise LimitExceeded(
                f"{url}: the function wrote a file of more than {self._limits.scratch >> 20} MiB"
            )
        if code > 128:
            raise BadQuery(f"{url}: the function's process was killed by signal {code - 128}")
        raise BadQuery(f"{url}: the function ended its process (exit code {code}) before it returned")


def _line(text: Any) -> str:
    line = " ".join(str(text)[:2000].split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)[:500]


def fits(folder: Path, most: int) -> bool:
    """Whether the files of a folder stay below a size; what vanishes meanwhile counts nothing."""
    total, left = 0, [(str(folder), 0)]
    while left and total <= most:
        place, depth = left.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        total += max(ENTRY, entry.stat(follow_symlinks=False).st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, depth + 1))
        except FileNotFoundError:
            continue
        except OSError:
            return False  # its rights or the length of its path hide what is in it
        if depth > DEPTH:
            return False
    return total <= most


def remove(folder: Path) -> None:
    """Remove a folder of a run, however deep it is and whatever rights its folders have.

    Python's own way is recursive: a function that ends at once may leave more levels than there are frames.
    """
    opened = [] if os.geteuid() == 0 else [["chmod", "-R", "u+rwX"]]
    for program in (*opened, ["rm", "-rf"]):
        subprocess.run([*program, "--", str(folder)], stderr=subprocess.DEVNULL, check=False)  # noqa: S603 - no shell, our own folder

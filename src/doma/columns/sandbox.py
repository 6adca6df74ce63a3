"""Python functions in a sandbox: which kind this machine can have, and runs of one function on one file.

Two kinds. ``bubblewrap``: a view of the file system with the interpreter and nothing else, and for each run
new process, network, mount and IPC namespaces. ``landlock``: the kernel's own file rules, no network at all;
the input is a file that was fetched before. Both add a system call filter, limits, an empty environment and,
where the server is root, a user id of its own. ``unsafe-single-user`` has none but the limits.
"""

import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doma.columns import sandbox_seal, sandbox_view
from doma.columns.remote import Bytes, LocalFile
from doma.columns.sandbox_run import PATIENCE, Feed, Isolation, Run, remove
from doma.columns.sandbox_zygote import receive, send
from doma.core.config import Columns
from doma.core.errors import DomaError, ServiceUnavailable

log = logging.getLogger(__name__)

LANDLOCK = 3
"""Earlier versions let files be emptied that may not be written."""


class Sandbox:
    """A warm sandbox: one run at a time, by one thread."""

    def __init__(self, isolation: Isolation) -> None:
        self.isolation = isolation
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    def warm(self) -> None:
        """Start the process that forks the runs, unless it is there."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                    sandbox_view.command(self.isolation.kind),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=sandbox_view.environment(),
                    start_new_session=True,
                )
        except OSError as e:
            ours.close()
            raise ServiceUnavailable(f"python: the sandbox does not start: {e.strerror}") from e
        self._link = ours
        ours.settimeout(60)
        try:
            answer, _ = receive(ours)
        except (OSError, ValueError) as e:
            self.close()
            raise ServiceUnavailable(f"python: the sandbox does not start: {e}") from e
        if answer is None:
            self.close()
            raise ServiceUnavailable("python: the sandbox does not start; see the server's log")

    def close(self) -> None:
        """End it with everything inside. Idempotent."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._link = None

    def run(self, source: str, data: Bytes, name: str, feed: Feed, tick: Callable[[], None]) -> str:
        """Run a function on an input; what it printed.

        Args:
            source: Python that defines ``run_query``.
            data: The input.
            name: File name that the function sees.
            feed: Gets the result, batch by batch, with the name of its tree.
            tick: Called some times a second.

        Raises:
            BadQuery: the function failed, with the last line of its traceback.
            LimitExceeded: time, memory or output. ServiceUnavailable: the sandbox. The input's own errors.
            Each has what was printed in ``detail["log"]``.
        """
        self.warm()
        run = Run(self.isolation, data, feed, tick)
        try:
            return run.go(source, name, self._begin, self._end)
        except DomaError as e:
            e.detail["log"] = run.log
            raise
        finally:
            run.close()

    def _begin(self, order: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Hand a run to the warm process."""
        assert self._link is not None
        try:
            send(self._link, order, fds)
        except OSError as e:
            self.close()
            raise ServiceUnavailable("python: the sandbox is gone; trying again") from e

    def _end(self, kill: bool) -> int:
        """Wait for the end of the run, or end it; its exit code."""
        if self._link is None:
            return 128 + 9
        self._link.settimeout(PATIENCE)
        try:
            if kill:
                send(self._link, {"kill": True})
            answer, _ = receive(self._link)
            return int((answer or {})["status"])
        except (OSError, ValueError, KeyError):
            self.close()  # whatever lives in it dies with it
            return 128 + 9


_warm: dict[str, Sandbox] = {}


def sandbox(text: str) -> Sandbox:
    """The warm sandbox of this process for an isolation's text."""
    if text not in _warm:
        _warm[text] = Sandbox(Isolation.of(text))
    return _warm[text]


def available(config: Columns, private: Path) -> Isolation | None:
    """The best isolation that this machine can have, tried out; None: functions cannot run here.

    It takes some seconds. A kind counts when a function that tries to break out of it cannot.

    Args:
        config: Our section.
        private: A folder whose files no function may see, the home.
    """
    limits = {
        "memory": config.python_memory, "seconds": int(config.python_timeout), "output": config.python_output,
        "scratch": config.python_scratch, "uids": config.python_uids,
    }  # fmt: skip
    _tidy()
    if config.python == "unsafe-single-user":
        return Isolation(config.python, **limits)
    if config.python == "off":
        return None
    for kind, lack in (("bubblewrap", _lacks_bubblewrap()), ("landlock", _lacks_landlock())):
        isolation = Isolation(kind, **limits)
        why = lack or _breaks_out(isolation, private)
        if not why:
            return isolation
        log.info("columns: no python functions by %s: %s", kind, why)
    log.warning("columns: python functions are off: this machine has no isolation for them")
    return None


def _lacks_bubblewrap() -> str:
    if not sandbox_seal.filtered():
        return "the system calls of this processor are not known"
    return "" if shutil.which("bwrap") else "there is no program bwrap; install the package bubblewrap"


def _lacks_landlock() -> str:
    if not sandbox_seal.filtered():
        return "the system calls of this processor are not known"
    version = sandbox_seal.landlock_version()
    return "" if version >= LANDLOCK else f"the kernel's Landlock is version {version}, {LANDLOCK} is needed"


def _breaks_out(isolation: Isolation, private: Path) -> str:
    """Run a function that tries what must not be; what it could do, or why it did not run."""
    found: list[str] = []
    box = Sandbox(isolation)
    with (
        tempfile.NamedTemporaryFile(dir=private, prefix="probe-") as secret,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        secret.write(b"a secret\n")
        secret.flush()
        os.fchmod(secret.fileno(), 0o644)
        given = LocalFile("file:///probe.txt", secret.name)
        facts = {"secret": secret.name, "port": server.getsockname()[1], "pid": os.getpid()}
        probe = PROBE.replace("= FACTS", f"= {facts!r}")
        try:
            box.run(
                probe,
                given,
                "probe.txt",
                lambda tree, _: found.append(tree),
                quiet,
            )
        except DomaError as e:
            log.debug("columns: the self-test printed: %s", e.detail.get("log"))
            return e.message
        finally:
            given.close()
            box.close()
    return f"it does not keep a function from {', '.join(found[1:])}" if found[1:] else ""


def quiet() -> None:
    """Tell nobody."""


PROBE = (Path(__file__).parent / "sandbox_probe.py").read_text(encoding="utf-8")
"""The function of the self-test; never imported here."""


def _tidy() -> None:
    """Remove the folders of runs whose worker is gone."""
    for left in Path(tempfile.gettempdir()).glob("doma-python-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove(left)

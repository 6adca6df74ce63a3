"""A system in a process of its own, for whoever needs one for a while: started, awaited, stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from doma.app.home import Home
from doma.core.errors import ServiceUnavailable

START = 60.0
"""Seconds that the system may take to become ready (imports of the scientific stack included)."""
STOP = 45.0
"""Seconds that it may take to stop: the drain of running answers and a margin."""


def tie(fd: int) -> None:
    """End this process in good order when the other side of a pipe is gone, as when its owner was killed."""
    os.set_inheritable(fd, False)

    def watch() -> None:
        os.read(fd, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="tie", daemon=True).start()


class Child:
    """``doma up`` as a child process; a context that starts and stops it. It does not outlive its owner.

    Args:
        home: Where it runs; nothing else may run there.
        options: Further arguments of ``doma up``.
        log: File that its output is appended to; None: ``up.log`` of the home.
    """

    def __init__(self, home: Home, options: Sequence[str] = (), *, log: Path | None = None) -> None:
        self.home, self.log = home, log or home / "up.log"
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> dict[str, Any]:
        """Start it and wait until every role is ready; the content of ``run.json``.

        Raises:
            ServiceUnavailable: it ended or was not ready in time; the message has its last word.
        """
        self.home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._untie()
        theirs, self._pipe = os.pipe()
        code = f"from doma.app.child import tie; from doma.cli import main; tie({theirs}); main()"
        arguments = ["--home", str(self.home.path), *self._options]
        try:
            with self.log.open("ab") as out:
                # Its own session: a Ctrl-C at the terminal is for us, who stop it in good order.
                self._process = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-c", code, "up", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    pass_fds=[theirs],
                )
        finally:
            os.close(theirs)
        deadline = time.monotonic() + START
        while True:
            ended = self._process.poll() is not None
            run = self._published()
            if run is not None:
                return run
            if ended or time.monotonic() > deadline:
                self.kill()
                words = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
                raise ServiceUnavailable(f"{self.home.path}: the system did not start: {words[0]}")
            time.sleep(0.02)

    def stop(self) -> int:
        """Ask it to stop, wait, and kill it if it does not; its exit code. Idempotent."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP)
        return self.kill()

    def kill(self) -> int:
        """End it at once; its exit code. Idempotent."""
        if self._process is None:
            return 0
        self._process.kill()
        code = self._process.wait()
        self._untie()
        return code

    def _untie(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _published(self) -> dict[str, Any] | None:
        """Its ``run.json``; one that a killed predecessor left does not count."""
        with suppress(FileNotFoundError, ValueError):
            run: dict[str, Any] = json.loads((self.home / "run.json").read_text())
            if run.get("pid") == self.pid:
                return run
        return None

"""Runs a program and ends it, with all it started, when whoever asked for it is gone. Standard library only.

``guard INPUT PROGRAM ARGUMENT…``: INPUT is the file for the program's standard input. Its own standard
input is a pipe that its parent holds open: its end, be it by ``kill -9``, is the end of the program.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_SUBREAPER = 36
"""prctl(2), ``PR_SET_CHILD_SUBREAPER``: what loses its parent below becomes a child of ours."""
_PATIENCE = 5.0
"""Seconds for what a program left behind to be gone; one that forks faster than it dies is not waited for."""


def main() -> None:
    """Run to the end; the exit code is the program's, 128 and the signal where one killed it."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    with open(sys.argv[1], "rb") as given:
        try:
            process = subprocess.Popen(sys.argv[2:], stdin=given, start_new_session=True)  # noqa: S603 - its purpose
        except OSError as e:
            sys.stderr.write(f"{sys.argv[2]}: cannot be run: {e.strerror}\n")
            os._exit(CANNOT)

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        kill()

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    kill()
    _reap()
    os._exit(code if code >= 0 else 128 - code)


def _reap() -> None:
    """End what the program left behind, also what has made a session of its own."""
    ends = time.monotonic() + _PATIENCE
    while time.monotonic() < ends and (children := _children()):
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


CANNOT = 127
"""As shells say it: there is no such program."""

if __name__ == "__main__":
    main()

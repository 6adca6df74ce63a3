"""Runs a program and ends it, with all it started, when whoever asked for it is gone. Standard library only.

``guard INPUT PROGRAM ARGUMENT…``: INPUT is the file for the program's standard input. Its own standard
input is a pipe that its parent holds open: its end, be it by ``kill -9``, is the end of the program.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run to the end; the exit code is the program's, 128 and the signal where one killed it."""
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
    kill()  # what it left behind
    os._exit(code if code >= 0 else 128 - code)


CANNOT = 127
"""As shells say it: there is no such program."""

if __name__ == "__main__":
    main()

# ruff: noqa: F821 - this text runs as a user's function, and FACTS is filled in
"""The function of the self-test: tries what no function may do; what it could are its trees."""

from collections.abc import Callable
from typing import Any


def run_query(input_filenames: str = "") -> dict[str, Any]:
    """Trees ``input`` and one for everything that should have failed."""
    import colorsys  # noqa: F401 - not warm: shows that modules can still be loaded
    import os
    import socket
    import threading
    from functools import partial

    import numpy as np

    facts = FACTS  # type: ignore[name-defined]
    broken: dict[str, Any] = {}

    def must_fail(name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, AttributeError):
            return
        broken[name] = np.zeros(1)

    def connect() -> None:
        with socket.create_connection(("127.0.0.1", facts["port"]), 2):
            pass

    def fork() -> None:
        if not os.fork():
            os._exit(0)

    def kill() -> None:
        os.kill(facts["pid"], 0)

    def write(place: str) -> None:
        path = os.path.join(place, f"doma-probe-{os.urandom(4).hex()}")
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
        os.unlink(path)

    must_fail("reading the home", lambda: open(facts["secret"]).close())
    must_fail("reading /etc/passwd", lambda: open("/etc/passwd").close())
    must_fail("reading the server's environment", lambda: open(f"/proc/{facts['pid']}/environ").close())
    must_fail("connecting to this machine", connect)
    must_fail("opening local sockets", lambda: socket.socket(socket.AF_UNIX).close())
    must_fail("starting processes", fork)
    must_fail("running programs", lambda: os.execv("/bin/true", ["true"]))  # noqa: S606 - as above
    must_fail("reaching the server's process", kill)
    for place in (
        "/",
        "/usr/lib",
        os.path.dirname(np.__file__),
        os.path.dirname(facts["secret"]),
        "/dev/shm",  # noqa: S108 - as above
    ):
        must_fail(f"writing into {place}", partial(write, place))
    write(os.environ["TMPDIR"])
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    if str(input_filenames).startswith("http:"):
        import fsspec

        with fsspec.open(input_filenames) as file:
            text = file.read()
    else:
        with open(input_filenames, "rb") as file:
            text = file.read()
    return {"input": np.frombuffer(text, np.uint8), **broken}

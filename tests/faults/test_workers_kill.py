"""Further processes of a system whose main process is killed."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import System
from tests.e2e.test_system_workers import listeners


def test_workers_end_with_a_killed_main_process(start: Callable[..., System], tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text("[listen]\nworkers = 2\n")
    system = start("home", "--config", tmp_path / "two.toml", "--role", "issuer", "--role", "storage")
    (worker,) = listeners(system) - {system.pid}
    os.kill(system.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
    host, port = system.run["https"].removeprefix("https://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)

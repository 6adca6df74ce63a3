"""The home folder: one process at a time, and what a killed one leaves behind."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from doma.app.home import Home
from doma.core.errors import AlreadyRunning, ConfigError

HOLD = """
import sys
from pathlib import Path
from doma.app.home import Home
home = Home(Path(sys.argv[1]))
home.acquire()
home.publish({"pid": 0})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_with_the_pid_of_the_first_and_recovers_when_it_is_killed(tmp_path: Path):
    home = Home(tmp_path / "h")
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert home.running() == first.pid
        with pytest.raises(AlreadyRunning, match=f"pid {first.pid}") as caught:
            home.acquire()
        assert caught.value.detail == {"pid": first.pid}
        first.kill()
        first.wait()
        assert home.running() is None
        assert (home / "run.json").exists()  # what the killed one left
        home.acquire()
        assert not (home / "run.json").exists()
    finally:
        first.kill()
        first.communicate()
        home.release()


def test_only_the_owner_may_enter_and_files_appear_whole(tmp_path: Path):
    home = Home(tmp_path / "h")
    home.acquire()
    home.publish({"pid": os.getpid()})
    assert json.loads((home / "run.json").read_text()) == {"pid": os.getpid()}
    assert (home.path.stat().st_mode & 0o777, (home / "run.json").stat().st_mode & 0o777) == (0o700, 0o600)
    assert sorted(p.name for p in home.path.iterdir()) == ["lock", "run.json"]
    home.release()
    home.release()
    assert not (home / "run.json").exists()


def test_who_only_looks_whether_something_runs_keeps_nobody_out(tmp_path: Path):
    home = Home(tmp_path / "h")
    home.acquire()
    home.release()
    looks = os.open(home / "lock", os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, (looks,))
    timer.start()
    home.acquire()
    timer.join()
    home.release()


def test_what_a_killed_process_was_writing_is_cleared(tmp_path: Path):
    for name in (".token.a1b2c3_4", ".run.json.abcdefgh", ".keep", ".keep.abcdefgh", "token"):
        (tmp_path / name).write_text("x")
    home = Home(tmp_path)
    home.acquire()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".keep", ".keep.abcdefgh", "lock", "token"]
    home.release()


def test_nothing_runs_where_no_home_can_be(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert Home(tmp_path / "file" / "h").running() is None
    assert Home(tmp_path / "new").running() is None


ASK = """
import os, sys
from pathlib import Path
from doma.app.home import Home
from doma.app.identity import issuer_of
from doma.core.errors import ConfigError
os.setgid(65534), os.setuid(65534)
home = Home(Path(sys.argv[1]))
for ask in (home.running, lambda: issuer_of(home), home.acquire):
    try:
        ask()
    except ConfigError as e:
        print(e.message.count(str(home.path)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_home_of_somebody_else_is_named_not_opened():
    with tempfile.TemporaryDirectory() as name:  # closed to others, as every home is
        home = Path(name) / "h"
        home.mkdir(0o700)
        (home / "lock").touch()
        asked = subprocess.run(
            [sys.executable, "-c", ASK, str(home)], capture_output=True, text=True, check=True
        )
    assert len(asked.stdout.split()) == 3, asked.stdout
    assert "0" not in asked.stdout.split()


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used as a home"):
        Home(tmp_path / "file" / "h").acquire()


@pytest.mark.parametrize("text", ["", "x", "-1", "70000", "12"])
def test_a_damaged_port_file_means_a_new_port(tmp_path: Path, text: str):
    home = Home(tmp_path)
    (home / "port").write_text(text)
    assert home.port() in {0, 12}

"""Functions that attack what older or lesser kinds of isolation leave open."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from doma.columns import sandbox, sandbox_run
from doma.columns.remote import LocalFile
from doma.columns.sandbox import Sandbox
from doma.columns.sandbox_run import Isolation
from doma.core.errors import BadQuery, LimitExceeded

LIMITS = {"memory": 512 << 20, "seconds": 30, "output": 8 << 20, "scratch": 4 << 20}


@pytest.fixture(scope="module")
def box():
    """The kind whose work folder lies on a disk."""
    if why := sandbox._lacks_landlock():
        pytest.skip(why)
    made = Sandbox(Isolation("landlock", **LIMITS))
    yield made
    made.close()


@pytest.fixture
def run(box, tmp_path, monkeypatch):
    """Run a function's body; its work folder lies below ``tmp_path / "scratch"``."""
    place = tmp_path / "scratch"
    place.mkdir()
    for folder in (place, *place.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o711)
    monkeypatch.setattr(sandbox_run.tempfile, "tempdir", str(place))
    (tmp_path / "input.txt").write_text("x")
    data = LocalFile("file:///input.txt", str(tmp_path / "input.txt"))

    def run(body):
        inner = textwrap.indent(textwrap.dedent(body), "    ")
        source = (
            f"import os, socket, struct, threading, time\nimport numpy as np\ndef run_query(f):\n{inner}\n"
        )
        try:
            return box.run(source, data, "input.txt", lambda tree, table: None, lambda: None)
        finally:
            assert list(place.iterdir()) == []

    yield run
    data.close()


DEEP = """
for _ in range(1200):
    os.mkdir("d")
    os.chdir("d")
"""


def test_folders_deeper_than_python_recurses_are_a_limit_and_leave_nothing(run):
    with pytest.raises(LimitExceeded, match="folders that cannot be listed"):
        run(DEEP + "time.sleep(20)")
    with pytest.raises((BadQuery, LimitExceeded)):  # whichever is quicker
        run(DEEP + "os._exit(3)")


def test_folders_that_a_killed_worker_left_are_removed_however_deep_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "doma-python-999999999-x"
    left.mkdir()
    code = f"import os; os.chdir({str(left)!r})\n{DEEP}"
    subprocess.run([sys.executable, "-c", code], check=True)
    sandbox._tidy()
    assert list(tmp_path.iterdir()) == []


def test_a_stream_of_bytes_does_not_hide_what_is_written_to_disk(run):
    with pytest.raises(LimitExceeded, match="wrote more than 4 MiB"):
        run(
            """
            link = socket.socket(fileno=os.dup(3))
            head = b'{"tree": "t", "size": 8000000}'
            link.sendall(struct.pack("<I", len(head)) + head)
            def trickle():
                while True:
                    link.sendall(b"x")
                    time.sleep(0.02)
            threading.Thread(target=trickle, daemon=True).start()
            for i in range(20):
                with open(f"f{i}", "wb") as file:
                    file.write(bytes(1 << 20))
            time.sleep(25)
            """
        )


def test_empty_files_and_folders_without_rights_count(run):
    with pytest.raises(LimitExceeded, match="too many of them"):
        run(
            """
            for i in range(5000):
                os.close(os.open(f"f{i}", os.O_CREAT))
            time.sleep(25)
            """
        )


def test_descriptors_that_come_with_a_result_are_not_taken(run):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadQuery):
        run(
            """
            link = socket.socket(fileno=os.dup(3))
            null = os.open("/dev/null", os.O_RDONLY)
            socket.send_fds(link, [b"x"], [null] * 100)
            os._exit(0)
            """
        )
    assert len(os.listdir("/proc/self/fd")) == before


SIGNALS = """
import ctypes, fcntl, os, signal, sys, time
from doma.columns import sandbox_seal
sandbox_seal.landlock_version = lambda: 5
victim = os.fork()
if not victim:
    time.sleep(20)
    os._exit(0)
attacker = os.fork()
if not attacker:
    sandbox_seal.landlock(["/usr"])
    sandbox_seal.filter_calls(sockets=False)
    reading, writing = os.pipe()
    refused = 0
    pid = ctypes.c_int(victim)
    group = ctypes.create_string_buffer(bytes(pid), 4)
    for call in (
        lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, victim),
        lambda: fcntl.fcntl(reading, 15, b"\\1\\0\\0\\0" + bytes(pid)),
        lambda: fcntl.fcntl(reading, 10, signal.SIGKILL),
        lambda: fcntl.ioctl(reading, 0x8901, group),
        lambda: fcntl.ioctl(reading, 0x8902, group),
    ):
        try:
            call()
        except PermissionError:
            refused += 1
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writing, b"x")
    os._exit(refused)
_, status = os.waitpid(attacker, 0)
os.kill(victim, signal.SIGTERM)
_, ended = os.waitpid(victim, 0)
assert os.WTERMSIG(ended) == signal.SIGTERM, "the victim was killed"
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_no_process_is_signalled_by_way_of_a_descriptor_under_an_older_landlock():
    if why := sandbox._lacks_landlock():
        pytest.skip(why)
    ran = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (5, "")

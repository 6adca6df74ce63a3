"""What several fault tests break."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import postgres_server as postgres_server


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 MiB; not below pytest's own folders, which it could not remove."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("a small file system can be mounted by root only")
    place = Path(tempfile.mkdtemp(prefix="doma-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "doma-test", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        place.rmdir()
        pytest.skip("this machine lets nobody mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()

"""A home: the folder that holds everything one embedded system keeps, and the lock that it runs under.

lock        held (flock) by the running process; its text is the pid
run.json    addresses of the running system; gone when nothing runs
token       admin token, renewed in place
port        the port taken the first time
doma.toml   configuration, optional
doma.db tls/ keys/ site/ cache/ results/
"""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from doma.auth.files import make_private_dir, read_private, write_private
from doma.core.errors import AlreadyRunning, ConfigError


def default_home() -> Path:
    """``$DOMA_HOME``, else ``doma`` in the user's data folder (XDG base directories)."""
    if home := os.environ.get("DOMA_HOME"):
        return Path(home)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "doma"


_TEMPORARY = re.compile(r"\.(issuer|port|run\.json|scan\.key|token)\.[a-z0-9_]{8}")
"""What :meth:`Home.write` writes to before it renames."""

_LOOKS = 10
_LOOK = 0.02
"""Tries for the lock, and seconds between them: who only asks what runs holds it for an instant."""


class Home:
    """A home folder, made on first use with access for its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    def __truediv__(self, name: str) -> Path:
        """A file or folder of the home."""
        return self.path / name

    def acquire(self) -> None:
        """Make the folder and take its lock; what a killed process left behind is cleared.

        Raises:
            AlreadyRunning: another process runs here; its pid is in the message and in ``detail["pid"]``.
            ConfigError: the folder cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise ConfigError(
                f"{self.path}: cannot be used as a home ({e.strerror}); choose another with --home"
            ) from e
        if not _locked(lock):
            pid = self._pid(lock)
            os.close(lock)
            raise AlreadyRunning(
                f"{self.path}: already running with pid {pid}; stop it with 'doma down --home {self.path}'",
                pid=pid,
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock
        (self / "run.json").unlink(missing_ok=True)
        for left in self.path.iterdir():
            if _TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back and withdraw ``run.json``. Idempotent."""
        if self._lock is not None:
            (self / "run.json").unlink(missing_ok=True)
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def running(self) -> int | None:
        """The pid of the process that runs here, or None.

        Raises:
            ConfigError: the home is not ours to look into.
        """
        try:
            lock = os.open(self / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise ConfigError(
                f"{self.path}: cannot be looked into ({e.strerror}); ask as its owner or choose another"
                " with --home"
            ) from e
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._pid(lock)
        finally:
            os.close(lock)
        return None

    def publish(self, run: Mapping[str, Any]) -> None:
        """Write ``run.json`` in one rename."""
        self.write("run.json", json.dumps(run, indent=1) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a file of the home, readable by its owner only, in one rename.

        Raises:
            StorageFull, ConfigError: it cannot be written; what was there is unchanged.
        """
        write_private(self / name, text.encode())

    def secret(self, name: str) -> bytes:
        """32 random bytes of the home, made on first use."""
        path = self / name
        make_private_dir(path.parent)
        write_private(path, secrets.token_bytes(32), replace=False)
        found = read_private(path)
        if found is None or len(found) != 32:
            raise ConfigError(f"{path}: is torn; remove it, a new one is made at the next start")
        return found

    def port(self) -> int:
        """The port this home took before; 0 if it is new."""
        with suppress(FileNotFoundError, ValueError):
            port = int((self / "port").read_text())
            return port if 0 < port < 1 << 16 else 0
        return 0

    @staticmethod
    def _pid(lock: int) -> int:
        with suppress(ValueError):
            return int(os.pread(lock, 32, 0))
        return 0


def _locked(lock: int) -> bool:
    for attempt in range(_LOOKS):
        if attempt:
            time.sleep(_LOOK)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False

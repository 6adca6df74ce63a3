"""What every engine decides alike: is what came what was announced, and may it stand under that name?"""

from collections.abc import Mapping

from doma.core.checksum import ALGORITHMS, COMPUTABLE, Hasher, hasher, same
from doma.core.errors import (
    ChecksumMismatch,
    Conflict,
    PreconditionFailed,
    RangeNotSatisfiable,
    Unsupported,
    WrongSize,
)
from doma.store.protocol import Buffer, Stat


class Tally:
    """Size and checksums of a stream, against what was announced.

    adler32 is always computed; others only when the client stated them.

    Args:
        path: Where it is to be published.
        size: Bytes announced.
        stated: Checksums that the content must have.
        adler: Of the ``written`` bytes that came before; other checksums are then :attr:`late`.
        written: How many those are.
    """

    def __init__(
        self,
        path: str,
        size: int | None,
        stated: Mapping[str, str] | None,
        *,
        adler: Hasher | None = None,
        written: int = 0,
    ) -> None:
        self.path = path
        self.size = size
        self.written = written
        self._stated = dict(stated or {})
        for name in self._stated:
            if name not in COMPUTABLE:
                known = ", ".join(COMPUTABLE)
                raise Unsupported(f"{path}: checksum {name!r} cannot be verified here; state one of {known}")
        self._hashers: dict[str, Hasher] = {"adler32": adler or hasher("adler32")}
        self.late: tuple[str, ...] = ()
        """Stated checksums that somebody else must compute before the end."""
        if adler is None:
            self._hashers |= {name: hasher(name) for name in self._stated if name != "adler32"}
        else:
            self.late = tuple(name for name in self._stated if name != "adler32")

    def learn(self, hashers: Mapping[str, Hasher]) -> None:
        """Take the late checksums of the whole."""
        self._hashers |= hashers

    @property
    def only_adler(self) -> bool:
        """Whether no other checksum was stated."""
        return self._stated.keys() <= {"adler32"}

    @property
    def slow(self) -> bool:
        """Whether a hash is too slow for the event loop."""
        return not self._hashers.keys() <= {"adler32", "crc32c"}

    def expect(self, more: int) -> None:
        """Refuse bytes beyond the announced size before they are stored."""
        if self.size is not None and self.written + more > self.size:
            raise WrongSize(
                f"{self.path}: more than the announced {self.size} bytes came; nothing was published"
            )

    def add(self, data: Buffer) -> None:
        """Take bytes that were stored."""
        self.written += len(data)
        for one in self._hashers.values():
            one.update(data)

    def finish(self) -> dict[str, str]:
        """The checksums, after all of them and the size were found right.

        Raises:
            WrongSize, ChecksumMismatch.
        """
        if self.size is not None and self.written != self.size:
            raise WrongSize(
                f"{self.path}: {self.written} bytes came, {self.size} were announced; nothing was published"
            )
        found = {name: one.hexdigest() for name, one in self._hashers.items()}
        for name, stated in self._stated.items():
            if not same(name, found[name], stated):
                raise ChecksumMismatch(
                    f"{self.path}: {name} is {found[name]}, expected {stated}; nothing was published"
                )
        return {name: found[name] for name in ALGORITHMS if name in found}


def check_replaceable(
    path: str, there: Stat | None, *, if_version: str | None = None, if_absent: bool = False
) -> None:
    """Whether a file may be published under a name, given what stands there now.

    Raises:
        Conflict: a directory is there.
        PreconditionFailed: the condition does not hold.
    """
    if there is not None and there.is_dir:
        raise Conflict(f"{path}: this is a directory; write to a name below it")
    if if_absent and there is not None:
        raise PreconditionFailed(
            f"{path}: a file is already there; ask for an overwrite or choose another name"
        )
    check_version(path, there, if_version)


def check_version(path: str, there: Stat | None, version: str | None) -> None:
    """Whether the stated version (``*``: any) is the one that is there.

    Raises:
        PreconditionFailed: it is not.
    """
    if version is None or (there is not None and version in {"*", there.version}):
        return
    now = f"version {there.version} is there" if there else "nothing is there"
    raise PreconditionFailed(f"{path}: the file changed meanwhile: {now}, not {version}; look again")


def check_span(stat: Stat, start: int, stop: int) -> None:
    """Refuse bytes that are not in the file. Raises RangeNotSatisfiable."""
    if not 0 <= start <= stop <= stat.size:
        raise RangeNotSatisfiable(
            f"{stat.path}: bytes {start} to {stop} were asked for, it has {stat.size}", size=stat.size
        )


def check_move(source: str, target: str) -> None:
    """Refuse to move a thing onto or into itself. Raises Conflict."""
    if source == "/" or target == source or target.startswith(source + "/"):
        raise Conflict(f"{source}: cannot be moved to {target}, which is itself or lies below it")


def check_target(target: str, moving: Stat, there: Stat | None, overwrite: bool) -> None:
    """Whether what stands at a target may be replaced by a move: a file by a file.

    A directory is never replaced: a mistyped target must not cost a tree.

    Raises:
        PreconditionFailed, Conflict.
    """
    if there is None:
        return
    if not overwrite:
        raise PreconditionFailed(
            f"{target}: something is already there; allow the overwrite or choose another name"
        )
    if there.is_dir or moving.is_dir:
        raise Conflict(f"{target}: only a file can replace a file; delete the target first")

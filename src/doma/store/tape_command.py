"""A site's own tape system, reached by its executables.

Each is an argument list from the configuration, called without a shell and with one more group of arguments:

    archive  IDENT FILE SIZE ADLER32         write FILE to tape under IDENT; answer where it is
    stage    IDENT CARTRIDGE POSITION FILE   read IDENT into FILE, which does not exist yet
    query    IDENT                           answer where IDENT is
    remove   IDENT CARTRIDGE POSITION        give IDENT up (optional: without it nothing leaves the tape)

Exit code 0 is success, 2 says that the library does not have the file and never will, anything else is a
failure that is tried again. ``archive`` and ``query`` print one JSON object on their last line:
``{"cartridge": "V00123", "position": 17}``. IDENT is 32 hexadecimal digits and never comes again. A command
that is killed may be called again with the same arguments.
"""

import asyncio
import json
import os
import re
import signal
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from doma.core.config import Tape
from doma.core.errors import ConfigError, NotFound, StorageUnavailable
from doma.store.tape_library import Place

GONE = 2
"""Exit code: the library does not have it."""
SAID = 64 << 10
"""Bytes of a command's output that are kept; more is an error."""

_CARTRIDGE = re.compile(r"[!-,.-~][ -~]{0,63}")


class CommandLibrary:
    """The executables ``archive``, ``stage``, ``query`` and perhaps ``remove`` of a site.

    Raises:
        ConfigError: one of the first three is missing.
    """

    def __init__(self, options: Tape) -> None:
        for name in ("archive", "stage", "query"):
            if not getattr(options, name):
                raise ConfigError(
                    f"tape.{name}: is empty; a tape system behind commands needs archive, stage and query"
                )
        self._options = options

    async def archive(self, drive: int, ident: str, source: Path, size: int, adler32: str) -> Place:
        # A kill may have come between the writing and our note of it: never write the same file twice.
        try:
            return _place(await self._run(self._options.query, ident), "query")
        except NotFound:
            said = await self._run(self._options.archive, ident, str(source), str(size), adler32)
            return _place(said, "archive")

    async def recall(self, drive: int, ident: str, place: Place, size: int, target: Path) -> None:
        await self._run(self._options.stage, ident, place.cartridge, str(place.position), str(target))

    async def remove(self, ident: str, place: Place | None) -> None:
        if not self._options.remove:
            return
        with suppress(NotFound):
            where = place or _place(await self._run(self._options.query, ident), "query")
            await self._run(self._options.remove, ident, where.cartridge, str(where.position))

    async def close(self) -> None:
        """Nothing is held."""

    async def _run(self, command: Sequence[str], *arguments: str) -> bytes:
        """What the command prints; it and its children are killed at the time limit."""
        name = Path(command[0]).name
        loop = asyncio.get_running_loop()
        try:
            # What create_subprocess_exec does; it keeps to itself the transport, which must be closed.
            transport, protocol = await loop.subprocess_exec(
                lambda: SubprocessStreamProtocol(limit=SAID, loop=loop),
                *command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            process = Process(transport, protocol, loop)
        except OSError as e:
            raise StorageUnavailable(f"{name}: cannot be started ({e.strerror}); correct tape.*") from e
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(self._options.timeout):
                said, cause = await asyncio.gather(_head(process.stdout), _head(process.stderr))
                code = await process.wait()
        except TimeoutError as e:
            raise StorageUnavailable(
                f"{name}: took longer than {self._options.timeout:g} s and was killed"
            ) from e
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            try:
                with suppress(TimeoutError):  # of a child that left the group and still holds the pipes
                    async with asyncio.timeout(5):
                        await asyncio.gather(_head(process.stdout), _head(process.stderr), process.wait())
            finally:
                transport.close()
        if code == 0:
            return said
        why = cause.decode("utf-8", "replace").strip().rpartition("\n")[2][:200] or f"exit code {code}"
        if code == GONE:
            raise NotFound(f"{name}: {why}")
        raise StorageUnavailable(f"{name}: {why}; it is tried again")


async def _head(stream: asyncio.StreamReader) -> bytes:
    """The first bytes of a stream; the rest is read and dropped, so that the command can end."""
    kept = bytearray()
    while data := await stream.read(SAID):
        kept += data[: max(0, SAID - len(kept))]
    return bytes(kept)


def _place(said: bytes, name: str) -> Place:
    try:
        answer = json.loads(said.strip().rpartition(b"\n")[2])
        cartridge, position = answer["cartridge"], answer["position"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise StorageUnavailable(
            f'tape.{name}: its last line must be {{"cartridge": "…", "position": 0}}'
        ) from e
    # Both are arguments of the next command and columns of our table.
    if not (isinstance(cartridge, str) and _CARTRIDGE.fullmatch(cartridge)):
        raise StorageUnavailable(
            f"tape.{name}: cartridge must be 1 to 64 printable ASCII characters, not beginning with a minus"
        )
    if type(position) is not int or not 0 <= position < 1 << 63:
        raise StorageUnavailable(f"tape.{name}: position must be a number from 0")
    return Place(cartridge, position)

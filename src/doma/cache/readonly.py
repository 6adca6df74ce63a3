"""The changing half of a store, refused: a cache is written to at its origin."""

from collections.abc import Mapping
from typing import NoReturn

from doma.core.errors import NotAllowed
from doma.store.protocol import Upload


class ReadOnly:
    """Refuses every change.

    Args:
        origin: Where to write instead, for messages.
    """

    def __init__(self, origin: str) -> None:
        self._instead = origin

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> Upload:
        """Not allowed: a cache is read-only."""
        self._refuse(path)

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        """Not allowed: a cache is read-only."""
        self._refuse(path)

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        """Not allowed: a cache is read-only."""
        self._refuse(source)

    async def make_dir(self, path: str) -> None:
        """Not allowed: a cache is read-only."""
        self._refuse(path)

    def _refuse(self, path: str) -> NoReturn:
        raise NotAllowed(f"{path}: a cache is read-only; write to the origin {self._instead} instead")

"""How much disk a cache's folder takes: what the index knew, what changed since, and what is no object's.

The event loop adds what it changes; the index's thread finds out the rest. Blocks are counted, as ``du``
does, of the whole folder: objects with their layouts, and *beside* them the index and the folders themselves.

Source: cache contract §7 "Purge rules" (usage agrees with ``du`` within 1 %).
"""

from collections.abc import Callable

from doma.cache.shelf import Shelf

_ROUNDS = 3
"""How often it is counted anew because something changed meanwhile."""


class Usage:
    """The disk use of one cache folder, in bytes of allocated blocks."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._counted = self._change = 0
        self.beside = 0
        """Bytes of the index and of folders."""

    @property
    def total(self) -> int:
        """All of it, as far as it is known now."""
        return max(0, self._counted + self._change) + self.beside

    def add(self, change: int) -> None:
        """Objects have grown, or gone; on the event loop."""
        self._change += change

    def found(self, more: int) -> None:
        """Objects take more than was thought; in the thread that looked."""
        self._counted += more

    def measure(self) -> None:
        """Look what the index and the folders take. Blocks."""
        self.beside = self._shelf.beside()

    def agree(self, known: Callable[[], int]) -> int:
        """Take over what the index knows of all objects; bytes of everything. Blocks."""
        for _ in range(_ROUNDS):
            before = self._change
            total = known()
            if self._change == before:  # else some of it was written down before it changed, some after
                self._counted = total - before
                break
        self.measure()
        return total + self.beside

"""Which bytes of a file will be wanted next, judged by its own structure.

A cache asks the :class:`Foresight` of an open object at each read that missed; who makes it knows the file's
clusters and columns (:mod:`doma.cache.layout`).

Source: cache contract §9.
"""

from collections.abc import Sequence
from typing import Protocol


class Foresight(Protocol):
    """The reading habits of the clients of one version of one object."""

    def seen(self, start: int, stop: int) -> Sequence[tuple[int, int]]:
        """Note a read of ``[start, stop)``; the byte ranges worth fetching now, none that was given before.

        Called on the event loop for every read, hit or miss: microseconds, never waits.
        """

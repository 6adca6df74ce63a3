"""The cache's disk as a thing that may be ill: after an error it is left alone for a while.

What is fetched meanwhile passes through to its readers and is not kept; what lies there is still served, page
by page, as far as it can be read and fits its checksum.

Source: cache contract C9, C10, O13.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from doma.cache.stats import Counters

log = logging.getLogger(__name__)

REST = 15.0
"""Seconds for which nothing is written after an error."""
ALARM = 60.0
"""Seconds between two alarms."""


class Disk:
    """Whether the disk of one cache may be written to.

    Args:
        root: The cache folder.
        counters: Where its errors are counted.
        clock: Unix seconds.
    """

    def __init__(self, root: Path, counters: Counters, clock: Callable[[], float]) -> None:
        self._root, self._counters, self._clock = root, counters, clock
        self._seen = 0
        self._until = self._alarm = float("-inf")

    @property
    def resting(self) -> bool:
        """Whether it is to be left alone now."""
        now, errors = self._clock(), self._counters.disk_errors
        if errors != self._seen:
            self._until = now + REST
            if now - self._alarm >= ALARM:
                self._alarm = now
                log.error(
                    "%s: the cache disk fails (%d errors so far, %d now); for %.0f s nothing is written and "
                    "reads pass through; look at the disk",
                    self._root, errors, errors - self._seen, REST,
                )  # fmt: skip
            self._seen = errors
        return now < self._until

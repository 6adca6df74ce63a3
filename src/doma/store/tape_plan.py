"""What a tape drive does next: pure decisions over what waits.

A mount costs more than a read, so a drive reads everything that is wanted from the cartridge it has, in the
order of positions, before it takes another. Which cartridge comes next is decided by the shares of the
activities that wait: the one that has had least of its share names the cartridge.

Source: W95 of the storage contract; start-time fair queueing (Goyal, Vin, Cheng, 1996) for the shares.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

ARCHIVE = "archive"
"""Writing to tape takes its turns under this name."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one activity waits for on one cartridge."""

    cartridge: str
    """Empty for files that wait to be archived."""
    activity: str
    files: int
    since: float
    """Unix seconds: the longest wait."""


class Shares:
    """Who has had how much: each activity's count of files over its share.

    Args:
        shares: Activity to its share, above 0; 1 for what is not listed.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = dict(shares)
        self._had: dict[str, float] = {}
        self._floor = 0.0

    def first(self, waiting: Collection[str]) -> str:
        """The activity whose turn it is.

        One that had nothing to do for a while begins where the others are: it has no credit.
        """
        for name in waiting:
            self._had[name] = max(self._had.get(name, 0.0), self._floor)
        chosen = min(waiting, key=lambda name: (self._had[name], name))
        self._floor = self._had[chosen]
        return chosen

    def charge(self, activity: str, files: int = 1) -> None:
        """Count files that were served."""
        before = self._had.get(activity, self._floor)
        self._had[activity] = before + files / self._shares.get(activity, 1.0)


def next_cartridge(
    loads: Iterable[Load], shares: Shares, *, mounted: str | None, busy: Collection[str]
) -> str | None:
    """The cartridge that a free drive serves next; empty: archive; None: there is nothing for it.

    Args:
        loads: Everything that waits.
        shares: What the activities have had.
        mounted: The cartridge in the drive: taken as long as it is the turn of any of its activities.
        busy: Cartridges in other drives.
    """
    free = [load for load in loads if load.cartridge not in busy]
    if not free:
        return None
    turn = shares.first({load.activity for load in free})
    own = [load for load in free if load.activity == turn]
    return min(own, key=lambda load: (load.cartridge != mounted, load.since, load.cartridge)).cartridge


def sweep(positions: Sequence[int], head: int) -> list[int]:
    """Indices in the order of reading: up from the head, then from the beginning of the cartridge.

    >>> sweep([5, 40, 20, 10], head=15)
    [2, 1, 0, 3]
    """
    return sorted(range(len(positions)), key=lambda i: (positions[i] < head, positions[i]))

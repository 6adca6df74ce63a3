"""Whether short calls to a disk may be made on the event loop, without a thread.

One late call says little: the process may have waited for a processor, not for the disk. Two in a row turn to
threads, and one in a thread that was quick turns back.
"""

SLOW = 0.020
"""Seconds that a call may take on the event loop …"""
QUICK = 0.004
"""… and in a thread, for the next ones to be made on the loop again."""


class Pace:
    """How a disk did of late."""

    __slots__ = ("_late", "quick")

    def __init__(self) -> None:
        self.quick = True
        """Short calls are made on the event loop."""
        self._late = False

    def called(self, took: float) -> None:
        """A call has ended on the event loop, after so many seconds."""
        late = took >= SLOW
        self.quick = not (late and self._late)
        self._late = late

    def threaded(self, took: float) -> None:
        """A call has ended in a thread."""
        if took < QUICK:
            self.quick, self._late = True, False
        elif took >= SLOW:  # in between, it may have waited for the interpreter's lock
            self.called(took)

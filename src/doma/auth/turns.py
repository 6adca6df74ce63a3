"""Whose turn it is at the issuer: a secret costs 16 MiB and some 40 ms to check, and anybody may send one."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address

from doma.core.errors import TooManyRequests


def near(address: str) -> str:
    """The address as one who asks is counted by it: a whole /64 of IPv6 is one, as one user has it all.

    >>> near("192.0.2.7"), near("::ffff:192.0.2.7"), near("2001:db8:0:1:2:3:4:5")
    ('192.0.2.7', '192.0.2.7', '2001:db8:0:1::')
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address  # of a socket that has none
    if not isinstance(found, IPv6Address):
        return str(found)
    return str(found.ipv4_mapped or IPv6Address(int(found) >> 64 << 64))


class Turns:
    """Lets few work at once, and of those who wait one of each address by turns.

    Args:
        places: Who may work at once: each takes a thread that others want too.
        line: Who may wait of one address.
    """

    def __init__(self, places: int = 4, line: int = 1000) -> None:
        self._free, self._longest = places, line
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def of(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn and have it. Raises TooManyRequests where too many of the address wait."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(near(address))
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, who: str) -> None:
        line = self._lines.setdefault(who, deque())
        if len(line) >= self._longest:
            raise TooManyRequests(f"{who}: {len(line)} requests wait already; ask later", retry_after=5)
        mine = asyncio.get_running_loop().create_future()
        line.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # the turn came and we are gone
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._lines:
            who = next(iter(self._lines))
            line = self._lines.pop(who)
            first = line.popleft()
            if line:
                self._lines[who] = line  # behind all others
            if not first.done():
                first.set_result(None)
                return
        self._free += 1

"""Fireflies: UDP packets that tell a collector which experiment and activity a flow belongs to.

One when a transfer's first data connection stands and one at its end, for network operators; nobody answers
and nothing depends on them.

Source: SciTags "Network flow marking, technical specification" (firefly: JSON in RFC 5424 syslog, port 10514)
and ``SciTag`` in §6 of the storage contract.
"""

import asyncio
import json
import os
import re
import socket
from contextlib import suppress
from datetime import UTC, datetime

from doma.core.errors import ConfigError
from doma.net.wire import Address

PORT = 10514
_PLACE = re.compile(r"(?:\[([^][]+)\]|([^][:]+|[^][:]*:[^][]*:[^][]*))(?::([0-9]{1,5}))?")
"""``host``, ``host:port``, ``2001:db8::1``, ``[2001:db8::1]:port``."""


class Fireflies:
    """Sends them.

    Args:
        collector: ``host[:port]``, an IPv6 address with a port in brackets; empty: none are sent.

    Raises:
        ConfigError: it is no address.
    """

    def __init__(self, collector: str) -> None:
        found = _PLACE.fullmatch(collector)
        host, port = (found[1] or found[2], found[3]) if found else ("", "")
        if (collector and not host) or int(port or PORT) > 0xFFFF:
            raise ConfigError(f"tpc.scitags: {collector!r} is no host[:port] of a collector")
        self._collector = (host, int(port or PORT)) if host else None
        self._host = socket.gethostname()

    def send(
        self,
        state: str,
        tag: int,
        ends: tuple[Address, Address],
        *,
        began: float,
        now: float,
        received: int = 0,
        sent: int = 0,
    ) -> None:
        """Send one; lost ones are lost.

        Args:
            state: ``start`` or ``end``.
            tag: Experiment times 64 plus activity.
            ends: Of one data connection: ours and the peer's.
            began: Unix seconds.
            now: Unix seconds.
            received: Bytes so far.
            sent: Bytes so far.
        """
        if self._collector is None:
            return
        (own, own_port), (peer, peer_port) = ends
        times = {"start-time": _time(began), "current-time": _time(now)}
        if state == "end":
            times["end-time"] = _time(now)
        body = {
            "version": 1,
            "flow-lifecycle": {"state": state, **times},
            "usage": {"received": received, "sent": sent},
            "flow-id": {
                "afi": "ipv6" if ":" in own else "ipv4",
                "src-ip": own,
                "dst-ip": peer,
                "protocol": "tcp",
                "src-port": own_port,
                "dst-port": peer_port,
            },
            "context": {"experiment-id": tag >> 6, "activity-id": tag & 63, "application": "doma/tpc"},
        }
        head = f"<134>1 {_time(now)} {self._host} doma {os.getpid()} firefly-json - "
        packet = (head + json.dumps(body)).encode()
        asyncio.get_running_loop().run_in_executor(None, self._out, packet)

    def _out(self, packet: bytes) -> None:
        assert self._collector is not None
        with suppress(OSError):
            family = socket.getaddrinfo(*self._collector, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family[0], socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.sendto(packet, family[4])


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")

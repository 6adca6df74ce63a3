"""How far a transfer is, and the lines in which its client hears of it.

Source: rules W62-W68 of the storage contract; the format is GridFTP's and dCache's.
"""

import json
from dataclasses import dataclass, field

from doma.core.errors import DomaError
from doma.net.wire import Address

LINE = 900
"""Bytes of the last line; davix reads lines into 1024."""

Side = str
"""Whose fault it was: ``source``, ``destination`` or ``transfer``."""


@dataclass(slots=True)
class Progress:
    """The state of one transfer; written by who moves the bytes, read by who tells."""

    doing: str = "starting"
    bytes: int = 0
    """Bytes of the file that are at their place."""
    size: int | None = None
    attempts: int = 1
    peers: dict[Address, Address] = field(default_factory=dict)
    """Ends of the data connections: the peer's to ours."""
    checksums: dict[str, str] = field(default_factory=dict)
    _told: int = 0

    def connected(self, own: Address, peer: Address) -> None:
        """Remember a data connection."""
        self.peers[peer] = own

    def marker(self, now: float) -> str:
        """One performance marker; what was told once is never taken back when an attempt starts anew."""
        self._told = max(self._told, self.bytes)
        lines = [
            "Perf Marker",
            f"    Timestamp: {int(now)}",
            f"    State description: {self.doing}",
            "    Stripe Index: 0",
            f"    Stripe Bytes Transferred: {self._told}",
            "    Total Stripe Count: 1",
        ]
        if self.peers:
            lines.append(f"    RemoteConnections: {','.join(map(_literal, self.peers))}")
        return "\n".join([*lines, "End\n"])


def _literal(peer: Address) -> str:
    host, port = peer
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def blame(error: DomaError, side: Side) -> DomaError:
    """The error, with the side at fault noted if nobody did so closer to it."""
    error.detail.setdefault("side", side)
    return error


def last_lines(error: DomaError | None) -> str:
    """How the stream ends: ``success`` or, after one line for programs, ``failure``."""
    if error is None:
        return "success: Created\n"
    facts = {
        "code": error.code,
        "side": error.detail.get("side", "transfer"),
        "retry": error.retry,
        "status": error.detail.get("status", error.http),
    }
    text = " ".join(error.message.split()).encode("ascii", "replace").decode()
    return f"X-TPC-Error: {json.dumps(facts)}\nfailure: {text[:LINE]}\n"

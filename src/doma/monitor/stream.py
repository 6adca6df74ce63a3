"""Sends what happens to open files as monitoring packets, and writes one record of each file that was closed.

Packets go by UDP, to any number of collectors or shovelers; what is not delivered is lost, as with XRootD.
Maps go at once, so that they are there before the records that name them; records and events are gathered
for ``monitor.flush`` seconds or until a packet is full.

Source: §1-§5 of the monitoring contract; §10 of the cache contract.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from doma import __version__
from doma.core.config import Monitor
from doma.core.errors import ConfigError
from doma.core.events import Emit, Event
from doma.monitor import packets
from doma.monitor.opens import Client, Opened

log = logging.getLogger(__name__)

MOST = 100_000
"""Files and logins that are followed at one time; more are recorded when they close, not sent."""
NAMES = 64
"""Under which one session may be known at one time: a client can call itself anew before each open."""


@dataclass(slots=True)
class _Followed:
    number: int
    user: int
    told: int = 0
    """Bytes of the last record of its progress."""


class Stream:
    """The monitoring of one process; an :class:`doma.monitor.opens.Observer`. From the event loop only.

    Args:
        section: Where to and how often.
        port: That clients know.
        sid: This server's number, of which 48 bits count.
        emit: Takes ``object.read`` for each file that was read through a cache.
        clock: Unix seconds.
    """

    def __init__(
        self,
        section: Monitor,
        *,
        port: int,
        sid: int,
        emit: Emit = lambda event: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._section = section
        self._port = port
        self._sid = sid
        self._emit = emit
        self._clock = clock
        self._start = int(clock())
        self._since = self._events_since = clock()
        self._next = 1
        self._sequences: dict[str, int] = {}
        self._users: dict[Client, int] = {}
        self._logins: dict[int, dict[Client, None]] = {}
        self._files: dict[int, tuple[Opened, _Followed]] = {}
        self._records: list[bytes] = []
        self._size = 0
        self._moved = 0
        self._objects: dict[int, list[bytes]] = {}
        self._to: list[tuple[socket.socket, tuple[str, int]]] = []
        self._sought: list[tuple[str, int]] = []
        self.sent = 0
        self.lost = 0
        """Packets that this machine refused to send."""
        self.delivered: dict[tuple[str, ...], float] = {}
        """Bytes that caches delivered: by endpoint, class, VO and door."""

    async def start(self) -> None:
        """Look the collectors up and say who is here.

        Raises:
            ConfigError: ``monitor.dest`` has a word that is no ``host:port``.
        """
        for place in self._section.dest:
            host, _, port = place.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
                raise ConfigError(f"monitor.dest: {place!r} is not an address; write host:port")
            self._sought.append((host.strip("[]"), int(port)))
        await self._look_up(logging.WARNING)
        self._identify()

    async def run(self) -> None:
        """Flush and identify on time, until cancelled."""
        turns = 0
        last = self._clock()
        while True:
            await asyncio.sleep(self._section.flush)
            turns += 1
            self.flush(progress=turns % self._section.progress == 0)
            if await self._look_up(logging.DEBUG) or self._clock() - last >= self._section.ident:
                last = self._clock()
                self._identify()

    def close(self) -> None:
        """Send what is gathered and close the sockets. Idempotent."""
        self.flush()
        for sock, _ in self._to:
            sock.close()
        self._to.clear()

    # What happens.

    def opened(self, file: Opened) -> None:
        if not self._to or len(self._files) >= MOST:
            return
        user = self._users.get(file.client) or self._login(file.client)
        followed = _Followed(self._number(), user)
        self._files[id(file)] = (file, followed)  # which holds the file, so its id is its own
        self._record(packets.opened(followed.number, user, file))

    def closed(self, file: Opened, *, forced: bool = False) -> None:
        now = self._clock()
        _, followed = self._files.pop(id(file), (file, None))
        if followed is not None:
            self._record(packets.closed(followed.number, file, forced=forced))
        if file.cached is not None:
            self._through_cache(file, now)

    def left(self, session: int) -> None:
        for client in list(self._logins.get(session, ())):
            self._forget(client)
        self._logins.pop(session, None)

    def see(self, event: Event) -> None:
        """Take note of a third-party copy that ended."""
        if self._to and event.kind in {"copy.finished", "copy.failed"}:
            self._object(packets.COPIES, packets.copy_event(event, self._clock()))

    def flush(self, *, progress: bool = False) -> None:
        """Send what is gathered; with ``progress`` also how far open files are."""
        if progress:
            for file, followed in self._files.values():
                total = file.reads.total + file.readvs.total + file.writes.total
                if total != followed.told:
                    followed.told = total
                    self._record(packets.so_far(followed.number, file), moved=1)
        self._send_files()
        for provider in list(self._objects):
            self._send_events(provider)

    # Packets.

    async def _look_up(self, level: int) -> bool:
        """Whether a collector was found that had no address before."""
        missing = tuple(self._sought)
        for place in missing:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(*place, type=socket.SOCK_DGRAM)
                family, kind, protocol, _, address = found[0]
                sock = socket.socket(family, kind, protocol)
            except (OSError, UnicodeError) as e:  # names of odd lengths are not even asked for
                log.log(level, "monitor.dest: %s has no address (%s); it is asked for again", place[0], e)
                continue
            sock.setblocking(False)
            self._to.append((sock, (str(address[0]), int(address[1]))))
            self._sought.remove(place)
        return len(self._sought) < len(missing)

    def _login(self, client: Client) -> int:
        known = self._logins.setdefault(client.session, {})
        if len(known) >= NAMES:
            self._forget(next(iter(known)))
        user = self._users[client] = self._number()
        known[client] = None
        name = packets.who(client, self._sid)
        self._send("u", packets.mapping(user, name, packets.login(client)))
        if client.subject or client.issuer:
            number = self._number()
            self._send("T", packets.mapping(number, name, packets.token(client, user)))
        return user

    def _forget(self, client: Client) -> None:
        self._record(packets.left(self._users.pop(client)))
        del self._logins[client.session][client]

    def _identify(self) -> None:
        me = Client("=", socket.gethostname(), 0, name="doma")
        name = packets.who(me, self._sid)
        text = packets.identification(self._section.site, self._port, self._section.instance, __version__)
        self._send("=", packets.mapping(0, name, text))

    def _number(self) -> int:
        number, self._next = self._next, self._next + 1 & 0xFFFFFFFF or 1
        return number

    def _record(self, record: bytes, moved: int = 0) -> None:
        if not self._to:
            return
        if self._size + len(record) > packets.MOST_FILES - 64:
            self._send_files()
        if not self._records:
            self._since = self._clock()
        self._records.append(record)
        self._size += len(record)
        self._moved += moved

    def _send_files(self) -> None:
        if not self._records:
            return
        span = int(self._since), int(self._clock())
        self._send("f", packets.files(*span, self._sid, self._records, self._moved))
        self._records, self._size, self._moved = [], 0, 0

    def _object(self, provider: int, data: bytes) -> None:
        waiting = self._objects.setdefault(provider, [])
        if sum(map(len, waiting)) + len(waiting) + len(data) > packets.MOST_EVENTS - 64:
            self._send_events(provider)
            waiting = self._objects.setdefault(provider, [])
        waiting.append(data)

    def _send_events(self, provider: int) -> None:
        objects = self._objects.pop(provider, [])
        if objects:
            span = int(self._events_since), int(self._clock())
            self._events_since = self._clock()
            self._send("g", packets.events(provider, *span, self._sid, objects), str(provider))

    def _send(self, code: str, body: bytes, provider: str = "") -> None:
        counter = code + provider if code not in packets.MAPS else packets.MAPS
        # events are counted from one, all else from zero
        sequence = self._sequences.get(counter, 1 if provider else 0)
        self._sequences[counter] = sequence + 1
        data = packets.packet(code, sequence, self._start, body)
        for sock, address in self._to:
            try:
                sock.sendto(data, address)
                self.sent += 1
            except OSError as e:
                self.lost += 1
                log.debug("monitoring packet to %s was not sent: %s", address[0], e)

    # Records.

    def _through_cache(self, file: Opened, now: float) -> None:
        facts = record(file, now)
        if self._to:
            self._object(packets.CACHE, packets.cache_event(file, now, {"path": file.path, **facts}))
        seen, client = file.cached, file.client
        endpoint = file.path[1:].partition("/")[0]
        if seen is not None:
            for name in ("hit", "miss", "bypass", "prefetch", "repair"):
                if amount := getattr(seen, name):
                    key = endpoint, name, client.vo, "root" if client.protocol == "xroot" else "https"
                    self.delivered[key] = self.delivered.get(key, 0) + amount
        log.info("closed %s", json.dumps({"lfn": file.path, **facts}))
        if self._section.records:
            owner = f"{client.issuer}#{client.subject}" if client.issuer else ""
            self._emit(Event("object.read", file.path, facts, owner))


def record(file: Opened, until: float) -> dict[str, object]:
    """All that is known of a file that was read through a cache, for the log, the bus and the g-stream.

    The keys that XCache has come from :func:`doma.monitor.packets.cache_event`; these are ours.
    """
    client, reads, readvs = file.client, file.reads, file.readvs
    number = reads.count + readvs.count
    told: dict[str, object] = {
        "protocol": client.protocol, "client": client.host, "user": client.subject, "vo": client.vo,
        "issuer": client.issuer, "groups": list(client.groups), "appname": client.app, "info": client.info,
        "dur": round(until - file.since, 3), "n_ios": number, "reads": reads.count, "readvs": readvs.count,
        "segments": file.segments.total, "bytes": reads.total + readvs.total,
        "min": int(min(reads.least, readvs.least)) if number else 0, "max": max(reads.most, readvs.most),
        "avg": round((reads.total + readvs.total) / number) if number else 0,
        "t_first_byte": round(file.first_byte, 6), "outcome": file.outcome,
    }  # fmt: skip
    if (seen := file.cached) is not None:
        told |= {
            "origin": seen.remotes[0] if seen.remotes else "", "b_repair": seen.repair,
            "n_retries": seen.retries, "t_wait_origin": round(seen.wait_origin, 6),
        }  # fmt: skip
    return told

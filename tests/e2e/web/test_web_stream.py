"""An event from the writer to a client's socket, through outbox, relay, bus, stream and listener."""

import asyncio
import contextlib
import time

import uvloop
from joserfc.jwk import ECKey

from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.bus.local import Bus
from doma.core.config import Issuer, Listen
from doma.core.events import Event
from doma.db import outbox
from doma.db.engine import Database
from doma.doors.endpoint import Site
from doma.monitor.counted import counted
from doma.monitor.metrics import Metrics
from doma.net.listener import Listener
from doma.web.app import app
from doma.web.overview import Overview
from doma.web.stream import Streams

ISSUER, AUDIENCE = "https://issuer.example/dv", "https://se.example"


async def until(reader, mark):
    async with asyncio.timeout(20):
        return await reader.readuntil(mark)


def test_an_event_reaches_its_owners_socket_and_nobody_hangs_at_the_end(tmp_path):
    async def main():
        db, bus, metrics = Database(f"sqlite:///{tmp_path}/e.db"), Bus(), Metrics(process=False)
        db.migrate()
        keys = KeySet({"ES256": ECKey.generate_key("P-256")})
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: keys.jwks()})
        streams, emit = Streams(db, bus, heartbeat=0.05), outbox.EventWriter(db)
        overview = Overview(Site(verifier, {}), AUDIENCE, {}, metrics, db)
        web = counted(app(verifier, bus, db, metrics, overview.now, streams=streams), metrics)
        listener = Listener(web, fast=None, listen=Listen(address="127.0.0.1:0", drain=60), tls=None)
        address = await listener.start()
        work = [asyncio.create_task(c) for c in (outbox.Relay(db, bus.pass_on).run(), emit.run())]
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "iat": now, "exp": now + 600, "jti": "1"}
        token = keys.sign({**claims, "wlcg.ver": "1.0", "scope": ""}, "ES256")

        async def ask(target, token=""):
            reader, writer = await asyncio.open_connection(*address)
            head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            writer.write(head.encode() + (f"Authorization: Bearer {token}\r\n" if token else "").encode())
            writer.write(b"\r\n")
            return reader, writer

        reader, writer = await ask("/events?kind=file.*", token)
        assert b"200 OK" in await until(reader, b"retry: 2000")
        emit(Event("file.landed", "/site/others", {}, f"{ISSUER}#bob"))
        emit(Event("file.landed", "/site/mine", {"bytes": 1}, f"{ISSUER}#ada"))
        seen = await until(reader, b'"bytes": 1}}')
        assert b"event: file.landed" in seen
        assert b"others" not in seen
        writer.close()
        while streams._open:  # a client that has gone is noticed by the next signs of life
            await asyncio.sleep(0.01)
        reader, writer = await ask("/events/page")
        await until(reader, b"data:")
        bus.close()
        await listener.stop()
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        db.close()

    async def bounded():
        async with asyncio.timeout(50):
            await main()

    uvloop.run(bounded())

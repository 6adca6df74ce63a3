"""Status, metrics and event streams, asked over ASGI."""

import asyncio
import json
import os
import re
import time

import httpx
import pytest
from joserfc.jwk import ECKey

from doma import __version__
from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.bus.local import Bus
from doma.columns.model import Glance, State
from doma.columns.model import Overview as Columns
from doma.core.config import Issuer
from doma.core.errors import StorageUnavailable
from doma.core.events import Event
from doma.db import outbox
from doma.doors import endpoint as doors
from doma.doors.endpoint import Endpoint
from doma.monitor.metrics import Metrics
from doma.store.memory import MemoryStore
from doma.web.app import app
from doma.web.overview import Overview
from doma.web.stream import Asked, Streams
from tests.conftest import migrated

ISSUER, AUDIENCE = "https://issuer.example/dv", "https://se.example"
ADA, BOB = f"{ISSUER}#ada", f"{ISSUER}#bob"


class Site:
    def __init__(self, db):
        self.db, self.bus, self.metrics, self.now = db, Bus(), Metrics(process=False), 1000.0
        self.keys = KeySet({"ES256": ECKey.generate_key("P-256")})
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: self.keys.jwks()})
        self.streams = Streams(db, self.bus, heartbeat=3600, look=0.01, clock=lambda: self.now)
        self.store = MemoryStore(5 << 20)
        self.peer, self.ailing = os.geteuid(), {}
        gate = Gate({ISSUER: ["/"]})
        self.endpoints = {"<site>": Endpoint("<site>", self.store, gate)}
        self.columns, self.ticks = Columns(0, 0, 0, 0, 0, ()), 0.0
        self.overview = Overview(
            doors.Site(verifier, self.endpoints), AUDIENCE, {"issuer": ISSUER, "flight": "grpc+tls://se.example:1"},
            self.metrics, db, doors=lambda name: {"https": f"{AUDIENCE}/{name}"}, columns=self.requests,
            clock=lambda: 1000.0, ticks=lambda: self.ticks,
        )  # fmt: skip
        self.app = app(
            verifier,
            self.bus,
            db,
            self.metrics,
            self.overview.now,
            streams=self.streams,
            peer=lambda _: self.peer,
            ailing=lambda: self.ailing,
        )
        self.relay = outbox.Relay(db, self.bus.pass_on)

    async def requests(self):
        return self.columns

    def bearer(self, scope="", subject="ada"):
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + 600, "jti": "1"}
        token = self.keys.sign({**claims, "wlcg.ver": "1.0", "scope": scope}, "ES256")
        return {"authorization": f"Bearer {token}"}

    async def get(self, path, headers=None, client="127.0.0.1"):
        transport = httpx.ASGITransport(self.app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url=AUDIENCE) as http:
            return await http.get(path, headers=headers)

    async def end_when_open(self):
        while not self.streams._open:
            await asyncio.sleep(0)
        self.bus.close()

    async def happen(self, *events):
        await self.db.run(lambda tx: outbox.append_many(tx, events, 5.0))


@pytest.fixture
def site(tmp_path):
    db = migrated(tmp_path / "web.db")
    yield Site(db)
    db.close()


@pytest.mark.parametrize("peer", [None, os.geteuid() + 1])
async def test_the_page_that_names_people_is_for_the_user_who_runs_the_system(site, peer):
    site.peer = peer
    for path in ("/", "/events/page"):
        other = await site.get(path)
        assert (other.status_code, "doma.admin" in other.json()["detail"]) == (401, True)
    assert (await site.get("/", site.bearer("doma.admin"))).status_code == 200
    assert (await site.get("/metrics")).status_code == 200


@pytest.mark.parametrize("path", ["/", "/metrics", "/events/page"])
async def test_operators_pages_are_for_this_machine_and_for_admins(site, path):
    site.now = float("inf")  # the live page ends at once
    assert (await site.get(path)).status_code == 200
    away = await site.get(path, client="192.0.2.7")
    assert (away.status_code, away.headers["www-authenticate"]) == (401, 'Bearer realm="localhost"')
    proxied = await site.get(path, {"x-forwarded-for": "192.0.2.7"})
    assert proxied.status_code == 401
    poor = await site.get(path, site.bearer("storage.read:/"), client="192.0.2.7")
    assert (poor.status_code, poor.json()["facts"]) == (403, {"scope": "doma.admin"})
    assert (await site.get(path, site.bearer("doma.admin"), client="192.0.2.7")).status_code == 200


async def test_health_is_for_anybody_and_knows_the_database(site):
    answer = await site.get("/health", client="192.0.2.7")
    assert answer.json() == {"status": "ok", "version": __version__}
    site.ailing["cache near"] = "its disk fails"
    ill = await site.get("/health")
    assert (ill.status_code, ill.json()["status"], ill.json()["cache near"]) == (
        200,
        "degraded",
        "its disk fails",
    )
    site.db.close()
    broken = await site.get("/health")
    assert (broken.status_code, broken.json()["code"]) == (503, "service-unavailable")


async def test_the_page_shows_the_system_and_runs_nothing_but_its_own_script(site):
    page = await site.get("/")
    for shown in (
        __version__,
        "up 0.0 s",
        "no request yet",
        "memory",
        "5.00 MiB free of 5.00 MiB",
        f">{ISSUER}</code>",
    ):
        assert shown in page.text
    assert f'href="{ISSUER}"' in page.text
    assert 'href="grpc' not in page.text
    policy = page.headers["content-security-policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert "unsafe" not in policy
    # a token may stand in the address of the page: it goes nowhere from there
    assert (page.headers["cache-control"], page.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert page.text.count("<script") == page.text.count(f'<script nonce="{nonce}">') == 1
    assert re.search(r" on\w+=|style=|src=|http://|url\(", page.text) is None
    other = (await site.get("/")).headers["content-security-policy"]
    assert nonce not in other


EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


async def test_hostile_names_titles_and_facts_are_text_on_the_page_and_in_its_stream(site):
    glance = Glance("id", EVIL, f"{ISSUER}#{EVIL}", State.RUNNING, 2, 1, 0, 0.0, None)
    site.columns = Columns(0, 1, 0, 0, 0, (glance,))
    await site.happen(Event(EVIL[:60], f"/site/{EVIL}", {EVIL: EVIL, "size": EVIL}, EVIL))
    page = (await site.get("/")).text
    ending = asyncio.create_task(site.end_when_open())
    live = await site.get("/events/page")
    assert live.status_code == 200
    await ending
    stream = json.loads(live.text.removeprefix("data: "))
    for text in (page.partition("<main")[2].partition("<script nonce")[0], stream):
        assert "<img" not in text
        assert "<script" not in text
        assert "<site>" not in text
        assert text.count("&lt;img src=x") >= 4  # title, owner, subject, facts


async def test_the_page_as_json_has_the_same_facts(site):
    await site.happen(*(Event("a.b", str(n)) for n in range(30)))
    found = (await site.get("/", {"accept": "application/json"})).json()
    assert found["endpoints"][0]["space"] == {"used": 0, "available": 5 << 20}
    assert [e["subject"] for e in found["events"]] == [str(n) for n in range(29, 9, -1)]
    assert (found["columns"]["running"], found["trouble"]) == (0, "")


async def test_traffic_is_told_by_endpoint_with_rates_over_the_last_half_minute(site):
    async def told():
        return (await site.overview.now())["traffic"]

    site.metrics.request("https", "<site>", "GET", 200, 0.1, sent=1000)
    assert (await told())["<site>"]["requests_per_second"] is None
    site.ticks = 10.0
    site.metrics.request("https", "<site>", "PUT", 507, 0.1, received=50, count=5)
    site.metrics.request("https", "<site>", "GET", 404, 0.1)
    site.metrics.request("https", "", "GET", 499, 0.1)
    traffic = await told()
    assert traffic["<site>"] == {
        "requests": 7, "refused": 1, "failed": 5, "received": 50, "sent": 1000,
        "requests_per_second": 0.6, "bytes_per_second": 5.0,
    }  # fmt: skip
    assert (traffic[""]["requests"], traffic[""]["refused"], traffic[""]["failed"]) == (1, 0, 0)
    assert '<span class="bad">5</span>' in (await site.get("/")).text
    site.ticks = 100.0
    assert (await told())["<site>"]["requests_per_second"] is None


class Stuck(MemoryStore):
    """A disk that does not answer until it is freed."""

    def __init__(self):
        super().__init__()
        self.asked, self.free = 0, asyncio.Event()

    async def space(self):
        self.asked += 1
        await self.free.wait()
        return await super().space()


async def test_a_stuck_or_broken_store_delays_nothing_and_is_asked_once(site):
    class Broken(MemoryStore):
        async def space(self):
            raise StorageUnavailable("/: no disk")

    gate = Gate({ISSUER: ["/"]})
    stuck = Stuck()
    site.endpoints |= {"a": Endpoint("a", stuck, gate), "b": Endpoint("b", Broken(), gate)}

    async def spaces():
        return {p["name"]: p["space"] for p in (await site.overview.now())["endpoints"]}

    both = await asyncio.gather(spaces(), spaces())
    assert [(s["a"], s["b"], s["<site>"]["used"]) for s in both] == [(None, None, 0)] * 2
    assert stuck.asked == 1
    stuck.free.set()
    assert (await spaces())["a"]["used"] == 0


async def test_the_page_says_what_could_not_be_asked(site):
    site.db.close()
    page = await site.get("/")
    assert page.status_code == 200
    assert "the database is closed" in page.text


async def test_the_live_page_is_sent_again_when_it_changes(site):
    shown = ["one"]

    async def look():
        return shown[-1]

    lines = site.streams.page(look, until=2000.0)
    assert await anext(lines) == 'data: "one"\n\n'
    shown.append("two")
    assert await asyncio.wait_for(anext(lines), 10) == 'data: "two"\n\n'
    site.bus.close()
    assert [line async for line in lines] == []


async def test_an_event_wakes_the_live_page_before_its_next_look(site):
    streams, shown = Streams(site.db, site.bus, look=3600), ["one"]

    async def look():
        return shown[-1]

    lines = streams.page(look, until=float("inf"))
    await anext(lines)
    shown.append("two")
    for _ in range(50):  # a burst is no more than one
        site.bus.publish("a.b", "x")
    assert await asyncio.wait_for(anext(lines), 10) == 'data: "two"\n\n'
    site.bus.close()
    assert [line async for line in lines] == []


async def test_metrics_are_told(site):
    site.metrics.request("https", "site", "GET", 200, 0.1)
    answer = await site.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'doma_requests_total{door="https",endpoint="site",method="GET",status="200"} 1.0' in answer.text


@pytest.mark.parametrize("wrong", ["x", "-1", "1e5", "9" * 30, "1٣"])
async def test_a_wrong_event_number_is_refused(site, wrong):
    answer = await site.get(f"/events?last={wrong}", site.bearer())
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")


async def test_events_need_a_token_also_on_this_machine(site):
    assert (await site.get("/events")).status_code == 401
    many = "&".join("kind=a" for _ in range(30))
    assert (await site.get(f"/events?{many}", site.bearer())).status_code == 400


def seen(text):
    """(id, event, subject) of each frame of a stream."""
    frames = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            frames.append(
                (int(fields.get("id", 0)), fields["event"], json.loads(fields["data"]).get("subject"))
            )
    return frames


async def read(site, asked, count):
    """The first frames of a stream, which is then ended by its server."""
    text, lines = "", site.streams.lines(asked)
    async for line in lines:
        text += line
        if len(seen(text)) >= count:
            site.bus.close()
    return seen(text)


async def test_a_stream_is_resumed_from_the_outbox_and_goes_on_live(site):
    await site.happen(
        Event("a.b", "one", {}, ADA), Event("a.b", "two", {}, ADA), Event("a.b", "its", {}, BOB)
    )
    reader = asyncio.create_task(read(site, Asked(ADA, last=1), 2))
    await asyncio.sleep(0)
    task = asyncio.create_task(site.relay.run())
    await site.happen(Event("a.b", "live", {}, ADA), Event("a.b", "its", {}, BOB))
    assert await asyncio.wait_for(reader, 20) == [(2, "a.b", "two"), (4, "a.b", "live")]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_owner_hears_of_its_own_and_an_admin_of_all(site):
    site.now = 0.0
    await site.happen(
        Event("a.b", "ada's", {}, ADA), Event("a.c", "bob's", {}, BOB), Event("a.d", "no one's")
    )
    results = {}
    for name, headers in [
        ("ada", site.bearer()),
        ("admin", site.bearer("doma.admin")),
        ("bob", site.bearer(subject="bob")),
    ]:
        ending = asyncio.create_task(site.end_when_open())  # what is stored is sent all the same
        results[name] = seen((await site.get("/events?kind=a.*", {**headers, "last-event-id": "0"})).text)
        await ending
    assert [s for _, _, s in results["ada"]] == ["ada's"]
    assert [s for _, _, s in results["bob"]] == ["bob's"]
    assert [s for _, _, s in results["admin"]] == ["ada's", "bob's", "no one's"]


async def test_only_the_asked_kinds_are_sent(site):
    await site.happen(*(Event(k, k) for k in ("file.landed", "request.done", "file.gone")))
    found = await read(site, Asked(None, ("file.*",), last=0), 2)
    assert [kind for _, kind, _ in found] == ["file.landed", "file.gone"]


async def test_a_stream_ends_with_its_token(site):
    site.now = 3000.0
    assert [kind for _, kind, _ in await read(site, Asked(None, until=2000.0), 99)] == ["expired"]


async def test_a_stream_tells_nothing_more_once_its_token_is_revoked(site):
    revoked = []
    lines = site.streams.lines(Asked(None, good=lambda: not revoked))
    assert "retry" in await anext(lines)
    site.bus.publish("a.first", "x")
    assert "a.first" in await anext(lines)
    revoked.append("its token")
    site.bus.publish("a.second", "x")
    assert [kind for _, kind, _ in seen(await anext(lines))] == ["expired"]
    with pytest.raises(StopAsyncIteration):
        await anext(lines)


async def test_what_a_slow_client_missed_comes_from_the_outbox(site):
    await site.happen(Event("a.b", "first"))
    asked = Asked(None, last=0)
    lines = site.streams.lines(asked)
    assert "retry" in await anext(lines)
    assert seen(await anext(lines)) == [(1, "a.b", "first")]
    count = 3000  # beyond what one subscriber may leave waiting
    await site.happen(*(Event("a.b", str(i)) for i in range(count)))
    await site.relay.pass_on()
    got = []
    async for line in lines:
        got += seen(line)
        if got[-1][0] == count + 1:
            site.bus.close()
    assert [number for number, _, _ in got] == list(range(2, count + 2))


async def test_a_gap_that_was_pruned_is_told(site):
    await site.happen(*(Event("a.b", s) for s in "xyz"))
    await site.db.run(lambda tx: outbox.prune(tx, 10.0))
    await site.happen(Event("a.b", "new"))
    assert [(kind, s) for _, kind, s in await read(site, Asked(None, last=1), 2)] == [
        ("lagged", None),
        ("a.b", "new"),
    ]


async def test_a_client_of_another_database_still_hears_what_is_new(site):
    await site.happen(Event("a.b", "old"))
    site.streams._heartbeat = 0.01
    lines = site.streams.lines(Asked(None, last=10_000))
    while not (await anext(lines)).startswith(":"):  # it listens now
        pass
    await site.happen(Event("a.b", "new"))
    await site.relay.pass_on()
    while not (found := seen(await anext(lines))):
        pass
    assert found == [(2, "a.b", "new")]
    await lines.aclose()
